"""Predictions of calls as text and CSV: by speaker over time, and as a summary."""

import sys
from collections.abc import Iterator
from typing import Any

from mmemo.archives.writing import ItemLayout, describe_scores
from mmemo.timeline.windows import UNCERTAIN


BAR_WIDTH = 20
MIN_SHOWN_SHARE = 0.005
# Parts of a call that belong to no speaker, or to several.
SHARED_PARTS = ("silence", "overlap")


class CallLayout(ItemLayout):
    """The timelines of a call's speakers: a row for each entry of each speaker whose emotions were predicted."""

    mark = "speakers"
    has_many_rows = True
    place = ("speaker", "start", "end", "words")

    def rows(self, result: dict[str, Any]) -> Iterator[list[Any]]:
        for name, speaker in result["speakers"].items():
            if "timeline" in speaker:
                entries = speaker["timeline"] or [{**speaker, "start": "", "end": "", "words": []}]
                for entry in entries:
                    yield self.row((name, entry["start"], entry["end"], " ".join(entry["words"])), entry)

    def lines(self, name: str, result: dict[str, Any]) -> Iterator[str]:
        speakers = result["speakers"]
        width = max(map(len, speakers))
        yield f"{name}: {result['duration']:.2f} s"
        for speaker, found in speakers.items():
            yield f"  {speaker:<{width}}  {describe_scores(found) if 'label' in found else 'not predicted'}"
        spans = result.get("turns") or [
            {"speaker": speaker, **span} for speaker, found in speakers.items() for span in found.get("spans", ())
        ]
        for span in sorted(spans, key=lambda span: span["start"]):
            yield f"  {_times(span)}  {span['speaker']:<{width}}  {_emotion(span)}".rstrip()


class CallSummaryLayout(CallLayout):
    """Summaries of calls: a row for each speaker; see [`summarize_call`]."""

    @property
    def columns(self) -> list[str]:
        return ["speaker", "talk_seconds", "talk_share", "interruptions", *self.labels, UNCERTAIN]

    def rows(self, result: dict[str, Any]) -> Iterator[list[Any]]:
        for name, speaker in result["summary"]["speakers"].items():
            emotions = {label: round(share, 6) for label, share in speaker.get("emotions", {}).items()}
            yield [
                name,
                round(speaker["talk_seconds"], 3),
                round(speaker["talk_share"], 6),
                speaker["interruptions"],
                # An unpredicted speaker has no shares; labels that never occur have a share of 0.
                *(emotions.get(label, 0.0 if emotions else "") for label in (*self.labels, UNCERTAIN)),
            ]

    def lines(self, name: str, result: dict[str, Any]) -> Iterator[str]:
        summary = result["summary"]
        parts = (f"{part} {summary[part]['seconds']:.1f} s ({summary[part]['share']:.0%})" for part in SHARED_PARTS)
        yield f"{name}: {summary['duration']:.1f} s, {', '.join(parts)}"
        for speaker, found in summary["speakers"].items():
            interruptions = f"{found['interruptions']} interruption{'s' * (found['interruptions'] != 1)}"
            yield ""
            yield f"  {speaker}: talks {found['talk_seconds']:.1f} s ({found['talk_share']:.0%}), {interruptions}"
            if "emotions" in found:
                yield from _emotion_lines(found)
            else:
                yield "    emotions not predicted"
        yield ""


def _emotion_lines(found: dict[str, Any]) -> Iterator[str]:
    """Yields the emotions of a speaker: a bar and the quarters of the call for each, and the strongest spans."""
    shown = {label: share for label, share in found["emotions"].items() if share >= MIN_SHOWN_SHARE}
    width = max(map(len, shown), default=0)
    if shown:
        yield f"    {'':<{width}}  {'share of speech':<{BAR_WIDTH + 5}}   by quarter of the call"
    for label, share in shown.items():
        quarters = "  ".join(f"{quarter.get(label, 0.0):>4.0%}" for quarter in found["trend"])
        yield f"    {label:<{width}}  {_bar(share)} {share:>4.0%}   {quarters}"
    if found["strongest"]:
        yield "    strongest"
    for span in found["strongest"]:
        yield f"    {_times(span)}  {_emotion(span)}"


def _bar(share: float) -> str:
    full, empty = ("█", "░") if "utf" in (sys.stdout.encoding or "").lower() else ("#", ".")
    filled = round(share * BAR_WIDTH)
    return full * filled + empty * (BAR_WIDTH - filled)


def _times(span: dict[str, Any]) -> str:
    return f"{span['start']:8.2f} to {span['end']:8.2f} s"


def _emotion(span: dict[str, Any]) -> str:
    """Returns label, score and words of a span, of a turn, or of a turn that was not predicted."""
    if "label" not in span:
        return ""
    score = span["score"] if "score" in span else next((entry["score"] for entry in span["scores"]), None)
    words = " ".join(span.get("words", ()))
    return span["label"] + ("" if score is None else f" {score:.2f}") + (f'  "{words}"' if words else "")
