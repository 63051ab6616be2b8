"""
Summary of a call: talk time, interruptions, and the emotions of each speaker.

Deliberate choices:
- All times are the boundaries of speech and timeline entries; nothing is rounded to a grid.
- Emotion shares are relative to the speaker's own speech, so long silences do not change them.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from mmemo.timeline.windows import SILENCE, UNCERTAIN


# A speaker has the floor after this time; before it, both speakers began at once.
FLOOR_SECONDS = 0.5
# Shorter overlaps are normal turn-taking: the previous speaker was about to stop.
YIELD_SECONDS = 0.2
# Shorter stretches are backchannels ("mhm", "yes"), which do not take the floor.
STRETCH_SECONDS = 0.5
# Comparisons are made in microseconds, so that floating-point errors do not matter.
DECIMALS = 6

TREND_PARTS = 4
# Labels that are excluded from the strongest spans.
UNREMARKABLE = (SILENCE, UNCERTAIN, "neutral")


def summarize_call(result: dict[str, Any], strongest: int = 5) -> dict[str, Any]:
    """
    Summarizes the pipeline's result for a call.

    Args:
        result (`dict`):
            A result of the pipeline with `"duration"` in seconds and `"speakers"`: for each name the `"speech"`, a
            list of `(start, end)` in seconds, and for speakers whose emotions were predicted the `"timeline"`.
        strongest (`int`, *optional*, defaults to 5):
            Number of strongest spans to return per speaker.

    Returns:
        `dict` with
        - **duration** (`float`) -- as in the result.
        - **silence**, **overlap** -- `{"seconds", "share"}` of the call in which nobody speaks, and in which several
          speakers speak.
        - **speakers** -- for each name a dictionary with
            - **talk_seconds**, **talk_share** -- the speaker's talk time, and its share in the talk time of all.
            - **interruptions** (`int`) -- how often the speaker began a stretch of at least 0.5 s while another
              speaker had been speaking for at least 0.5 s and went on for at least 0.2 s.
            - **emotions** -- share of each label in the speaker's speech, highest first: all labels of the model, and
              "uncertain" if it occurs. This and the following need a timeline.
            - **trend** -- the same for each quarter of the call.
            - **strongest** -- `{"start", "end", "label", "score", "words"}` of the spans of one emotion with the
              highest mean scores, without neutral and uncertain spans.

        Shares of an empty whole are 0.

    Raises:
        ValueError: If the result is not that of a call, or `strongest` is negative.
    """
    if "speakers" not in result:
        raise ValueError(
            "The result has no 'speakers', so it is not that of a call; call the pipeline with channels=\"split\" or "
            "speaker_turns=."
        )
    if strongest < 0:
        raise ValueError(f"strongest={strongest!r} must be at least 0.")
    duration, speakers = result["duration"], result["speakers"]
    borders, active = _activity([speaker["speech"] for speaker in speakers.values()], duration)
    seconds = np.diff(borders)
    voices = active.sum(axis=0)
    talk = active @ seconds
    stretches = [_stretches(borders, row) for row in active]
    summary: dict[str, Any] = {"duration": duration}
    for name, where in (("silence", voices == 0), ("overlap", voices >= 2)):
        held = float(seconds[where].sum())
        summary[name] = {"seconds": held, "share": _share(held, duration)}
    summary["speakers"] = {}
    labels = _labels(speakers)
    for index, (name, speaker) in enumerate(speakers.items()):
        summary["speakers"][name] = {
            "talk_seconds": float(talk[index]),
            "talk_share": _share(float(talk[index]), float(talk.sum())),
            "interruptions": _interruptions(stretches[index], stretches[:index] + stretches[index + 1 :]),
        }
        if "timeline" in speaker:
            summary["speakers"][name] |= _emotions(speaker["timeline"], labels, duration, strongest)
    return summary


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _activity(speech: list[list[tuple[float, float]]], duration: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns who speaks between consecutive boundaries of speech.

    Returns:
        Boundaries in seconds, from 0 to the call's duration, of shape `(cells + 1,)`, and bools of shape
        `(speakers, cells)`.
    """
    spans = [np.clip(np.reshape(np.array(stretches, float), (-1, 2)), 0, duration) for stretches in speech]
    borders = np.unique(np.concatenate([[0.0, duration], *(span.ravel() for span in spans)]))
    active = np.zeros((len(spans), len(borders) - 1), bool)
    for row, span in zip(active, spans):
        begun, ended = (
            np.bincount(np.searchsorted(borders, times), minlength=len(borders)).cumsum()[:-1] for times in span.T
        )
        row[:] = begun > ended
    return borders, active


def _stretches(borders: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Returns starts and ends of one speaker's continuous stretches, of shape `(stretches, 2)`."""
    changes = np.diff(np.concatenate([[False], active, [False]]).astype(int))
    return borders[np.flatnonzero(changes)].reshape(-1, 2)


def _interruptions(own: np.ndarray, others: list[np.ndarray]) -> int:
    """Counts the stretches of one speaker that begin while another one has the floor and continues to speak."""
    begun = own[:, 0]
    interrupting = np.zeros(len(own), bool)
    for other in others:
        if len(other):
            # The other's last stretch that began before; if there is none, its very last one, which does not count.
            start, end = other[np.searchsorted(other[:, 0], begun, side="right") - 1].T
            interrupting |= _reaches(begun - start, FLOOR_SECONDS) & _reaches(end - begun, YIELD_SECONDS)
    return int((interrupting & _reaches(own[:, 1] - begun, STRETCH_SECONDS)).sum())


def _reaches(seconds: np.ndarray, least: float) -> np.ndarray:
    return np.round(seconds, DECIMALS) >= least


def _labels(speakers: dict[str, dict]) -> list[str]:
    """Returns the labels of the model, in the order in which they occur in the timelines."""
    entries = [entry for speaker in speakers.values() for entry in speaker.get("timeline", ())]
    return list(dict.fromkeys(score["label"] for entry in entries for score in entry["scores"]))


def _emotions(timeline: list[dict], labels: list[str], duration: float, strongest: int) -> dict[str, Any]:
    """Returns the part of a speaker's summary that needs the timeline."""
    voiced = [entry for entry in timeline if entry["label"] != SILENCE]
    own = [*labels, UNCERTAIN] if any(entry["label"] == UNCERTAIN for entry in voiced) else labels
    quarters = np.linspace(0, duration, TREND_PARTS + 1)
    spans = [_span(run) for run in _runs(voiced) if run[0]["label"] not in UNREMARKABLE]
    return {
        "emotions": _emotion_shares(voiced, own, -np.inf, np.inf),
        "trend": [_emotion_shares(voiced, own, start, end) for start, end in pairwise(quarters)],
        "strongest": sorted(spans, key=lambda span: span["score"], reverse=True)[:strongest],
    }


def _emotion_shares(voiced: list[dict], labels: list[str], start: float, end: float) -> dict[str, float]:
    """Returns the share of each label between start and end, highest first."""
    times = np.reshape(np.array([(entry["start"], entry["end"]) for entry in voiced], float), (-1, 2))
    seconds = np.maximum(np.minimum(times[:, 1], end) - np.maximum(times[:, 0], start), 0)
    rows = np.array([labels.index(entry["label"]) for entry in voiced], int)
    sums = np.bincount(rows, weights=seconds, minlength=len(labels))
    shares = {label: _share(float(part), float(seconds.sum())) for label, part in zip(labels, sums)}
    return dict(sorted(shares.items(), key=lambda item: item[1], reverse=True))


def _runs(timeline: list[dict]) -> list[list[dict]]:
    """Groups consecutive entries of the same label without a gap."""
    runs: list[list[dict]] = []
    for entry in timeline:
        last = runs[-1][-1] if runs else None
        if last and entry["label"] == last["label"] and round(entry["start"] - last["end"], DECIMALS) <= 0:
            runs[-1].append(entry)
        else:
            runs.append([entry])
    return runs


def _span(run: list[dict]) -> dict[str, Any]:
    """Merges a run of entries to one span, with the time-weighted mean score of its label."""
    label = run[0]["label"]
    scores = [score["score"] for entry in run for score in entry["scores"] if score["label"] == label]
    seconds = [max(entry["end"] - entry["start"], 10**-DECIMALS) for entry in run]  # words may have zero length
    words, end = [], -math.inf
    for entry in run:
        # Entries that overlap share words.
        if round(entry["start"] - end, DECIMALS) >= 0:
            words += entry["words"]
            end = entry["end"]
    return {
        "start": run[0]["start"],
        "end": run[-1]["end"],
        "label": label,
        "score": float(np.average(scores, weights=seconds)),
        "words": words,
    }
