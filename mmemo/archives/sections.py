"""
Long recordings in sections, so that one of 12 hours does not hold up the end of a job.

Deliberate choices:
- The borders depend on the recording and the options only, never on the engine or the number of workers, so that
  every engine returns the same results.
- Windows begin where speech begins after a pause, so those of a section depend on what precedes it. It is therefore
  cut into windows from some minutes before its start, of which the model only encodes those inside; detecting speech
  costs a seventh of that. See `LEAD_SECONDS`.
- Only local files are split: the length of a remote one is not known without a request, and each section would
  download all of it. Faces are followed from frame to frame, and an utterance is the whole recording, so videos with
  faces and granularity "utterance" are not split either.
"""

import math
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import numpy as np

from mmemo.answers import AnswerFormatter, mean_prediction
from mmemo.archives.reporting import describe_error
from mmemo.archives.tasks import ArchiveItem, Outcome, ScoringOptions, Section, Task
from mmemo.audio.loading import AudioBlocks
from mmemo.recognition import MAX_LOADED_SECONDS, EmotionRecognition, explain_mean, warn_of_mixing
from mmemo.storage import local_path
from mmemo.timeline.recording import Recording, SpeakerOptions, open_recording, read_words
from mmemo.timeline.track import SPEECH_GAP
from mmemo.timeline.windows import EPSILON, Span, TimelineOptions, Window, Word
from mmemo.words.times import separate_word_times, split_sentences


# The lowest plausible bit rate of speech, in bytes per second: Opus at 6 kbit/s.
MIN_BYTES_PER_SECOND = 750
# A recording is split if it is longer than this many sections; the last one lasts half to one and a half of them.
LONGEST_IN_SECTIONS = 1.5
MIN_SECTION_SECONDS = 60.0
# Borders and leads are multiples of this, the least common multiple of segments (0.5 s), frames of speech detection
# (32 ms) and the time between windows (3 s). With other leads, windows are rarely in step.
GRID_SECONDS = 12.0
# Sound before and after a section. In two hours of EmoDB clips with pauses of up to 1.5 s, the windows of 38 % of
# sections are in step with those of the whole recording after a lead of 24 s, of 88 % after 120 s, and of all after
# 300 s; then all predictions are the same, and after 20 s 1 % of the labels differ. Without pauses of half a second
# the windows are not in step: 15 % of the labels of half a second differ, and the mean scores by 0.002.
LEAD_SECONDS = 300.0
TAIL_SECONDS = 8.0
# Times that were shifted to a part of the recording and back are compared in microseconds.
DECIMALS = 6


def check_section_length(section_s: float) -> None:
    """Raises a `ValueError` if sections of long recordings would be too short; infinity splits nothing."""
    if not section_s >= MIN_SECTION_SECONDS:
        raise ValueError(
            f"section_s={section_s!r} must be at least {MIN_SECTION_SECONDS:g} seconds, such as 1800; infinity splits "
            "no recording."
        )


def plan_sections(item: ArchiveItem, options: ScoringOptions) -> list[Task]:
    """
    Returns the tasks of an item: one, or one for each section of a long recording.

    It is called for every item of an archive: only files that are large enough to be long are opened, and only their
    header is read. Files that cannot be read are one task, whose outcome describes the error.

    Args:
        item ([`ArchiveItem`]): The item.
        options ([`ScoringOptions`]): Of which `section_s` is the length of a section, rounded to 12 s.

    Returns:
        `list[Task]`: At least one task. Only local files are split, and only if their header declares their length.
    """
    longest = LONGEST_IN_SECTIONS * options.section_s
    if not options.timeline:
        # Shorter recordings are loaded, and their prediction may not be the mean over windows.
        longest = max(longest, MAX_LOADED_SECONDS)
    duration = None if _is_whole(item, options) else _declared_duration(str(local_path(str(item.path))), longest)
    if duration is None or duration <= longest:
        return [Task(item)]
    length = GRID_SECONDS * max(round(options.section_s / GRID_SECONDS), 1)
    count = round(duration / length)
    if count < 2:
        return [Task(item)]
    borders = [*(number * length for number in range(count)), math.inf]
    return [Task(item, Section(number, count, start, end)) for number, (start, end) in enumerate(pairwise(borders))]


def _is_whole(item: ArchiveItem, options: ScoringOptions) -> bool:
    """Whether an item is never split, however long its recording."""
    is_file = item.path is not None and item.content is None and local_path(item.path) is not None
    return not is_file or options.video or (options.timeline and options.granularity == "utterance")


def _declared_duration(path: str, longest: float) -> float | None:
    """Returns the length of a recording in seconds, `None` if it is unknown or the file is too small for `longest`."""
    try:
        file = os.stat(path)
        if not stat.S_ISREG(file.st_mode) or file.st_size <= longest * MIN_BYTES_PER_SECOND:
            return None
        return AudioBlocks(path).declared_duration
    except (OSError, ValueError):  # the worker describes it
        return None


class SectionPredictor:
    """
    Predicts sections of recordings.

    Args:
        predictor ([`EmotionRecognition`]): The model.
        options ([`ScoringOptions`]): How to predict.
    """

    def __init__(self, predictor: EmotionRecognition, options: ScoringOptions):
        self._predictor = predictor
        self._options = options

    def __call__(self, inputs: dict[str, Any], section: Section, channel: int | None) -> dict[str, Any]:
        """
        Predicts one section.

        Args:
            inputs (`dict`): `audio`, the [`AudioBlocks`] of the whole recording, `text` and `word_times`.
            section ([`Section`]): The section.
            channel (`int`, *optional*): The audio channel; the mean of all channels by default.

        Returns:
            `dict` with
            - **spans** -- `[start, end, words, scores, modality_weights]` of each span that starts in the section, in
              seconds of the recording; without a prediction, the last two are `None`.
            - **speech** -- `[start, end]` of the stretches of speech in the section.
            - **duration** (`float` or `None`) -- where its sound ends, in seconds of the recording: for the last
              section, the length of the recording. `None` if the recording ends before it.
            - **others** -- modalities of the item besides audio, if the prediction is one for the whole recording.
            - **alone** -- logits and modality weights of these alone, in the first section if it contains no speech.

        Raises:
            ValueError: If the item is invalid.
        """
        item = self._predictor.as_item(inputs)
        if self._options.timeline:
            timeline = TimelineOptions(granularity=self._options.granularity)
        else:
            self._predictor.check_word_times(item)
            timeline = self._predictor.mean_options()
        whole: AudioBlocks = item["audio"]
        text, words = _all_words(item, whole.duration)
        start = max(section.start - LEAD_SECONDS, 0.0)
        end = max(section.end, _end_of_units(words, section, timeline)) + TAIL_SECONDS
        audio, nearby = whole.between(start, end), _words_between(words, start, end)
        warn_of_mixing(audio, channel)
        first, last = section.start, section.end
        if words and not nearby and timeline.granularity != "segment":
            # Only speech is detected: all words or sentences are in other sections.
            timeline, first = replace(timeline, granularity="segment"), last
        recording = open_recording(
            self._predictor.processor,
            {"audio": audio, "text": text, "word_times": nearby or None},
            self._predictor.answers.modalities,
            SpeakerOptions(channel),
            timeline,
        )
        windows = _windows_between(recording, first - start, last - start)
        while batch := list(islice(windows, self._predictor.window_batch_size)):
            self._predictor.predict_windows(batch)
        recording.collect()
        (source,) = recording.sources
        duration = _sum_of_times(start, recording.duration, audio.target_rate)
        units = [] if timeline.granularity == "segment" else words
        exact = {round(time, DECIMALS): time for time in (duration, *(time for _, *times in units for time in times))}
        spans = [_shifted(span, start, exact) for span in source.spans]
        spans = [span for span in spans if first <= span[0] < last]
        result: dict[str, Any] = {
            "spans": spans,
            "speech": _clipped([(begin + start, stop + start) for begin, stop in source.speech], section),
            "duration": duration if recording.duration else None,
        }
        if not self._options.timeline:
            has_text = item.get("text") is not None
            result["others"] = ["text"] if has_text else []
            if section.number == 0 and has_text and all(span[3] is None for span in spans):
                logits, weights = self._predictor.predict_without_audio(item)
                result["alone"] = [np.asarray(logits).tolist(), np.asarray(weights).tolist()]
        return result


def _all_words(item: dict[str, Any], duration: float | None) -> tuple[str | None, list[Word]]:
    """Returns the text without timestamps of a whole recording, and its words with timestamps."""
    text, word_times = separate_word_times(item.get("text"), item.get("word_times"))
    text = text if text and text.strip() else None
    words = read_words(word_times, text, duration)
    return None if words else text, words


def _end_of_units(words: list[Word], section: Section, timeline: TimelineOptions) -> float:
    """Returns the end of the last word or sentence that starts in a section, 0 without one."""
    if timeline.granularity == "segment":
        return 0.0
    is_sentence = timeline.granularity == "sentence"
    units = split_sentences(words) if is_sentence else [(index, index + 1) for index in range(len(words))]
    inside = [words[stop - 1][2] for begin, stop in units if section.start <= words[begin][1] < section.end]
    return max(inside, default=0.0)


def _words_between(words: list[Word], start: float, end: float) -> list[Word]:
    """Returns the words that overlap a part of the recording, in seconds of that part."""
    return [
        (word, max(begin - start, 0.0), min(stop, end) - start)
        for word, begin, stop in words
        if begin < end and stop >= start
    ]


def _windows_between(recording: Recording, first: float, last: float) -> Iterator[Window]:
    """Yields the windows with spans that start between two times in seconds; the others are not predicted."""
    for window in recording:
        if any(first - EPSILON <= span.start < last + EPSILON for span in window.spans):
            yield window
        else:
            # Rows of zeros mark missing predictions.
            nothing = np.zeros((len(window.spans), 1), np.float32)
            window.set_predictions(nothing, nothing)


def _sum_of_times(first: float, second: float, rate: int) -> float:
    """Returns the sum of two times that are whole samples, without rounding errors."""
    return (round(first * rate) + round(second * rate)) / rate


def _shifted(span: Span, seconds: float, exact: dict[float, float]) -> list[Any]:
    """Returns a span of a part that starts at `seconds`; its times are those of `exact` that they are equal to."""
    begin, stop = (exact.get(round(time + seconds, DECIMALS), time + seconds) for time in (span.start, span.end))
    scores, weights = span.scores, span.modality_weights
    if scores is None or weights is None:
        return [begin, stop, span.words, None, None]
    return [begin, stop, span.words, scores.tolist(), weights.tolist()]


def _clipped(speech: list[tuple[float, float]], section: Section) -> list[list[float]]:
    """Returns the parts of stretches of speech that lie in a section, rounded as [`Track`] rounds them."""
    clipped = ((max(begin, section.start), min(stop, section.end)) for begin, stop in speech)
    return [[round(begin, DECIMALS), round(stop, DECIMALS)] for begin, stop in clipped if begin < stop]


class SectionJoiner:
    """
    Joins the outcomes of the sections of a recording to that of the recording.

    Args:
        answers ([`AnswerFormatter`]): Formats the scores of the model; see [`Scorer`].
        options ([`ScoringOptions`]): Those of the job.
    """

    def __init__(self, answers: AnswerFormatter, options: ScoringOptions):
        self._answers = answers
        self._options = options
        self._sections: dict[str, dict[int, Outcome]] = {}

    def add(self, outcome: Outcome) -> Outcome | None:
        """
        Adds the outcome of a task.

        Args:
            outcome ([`Outcome`]): The outcome.

        Returns:
            [`Outcome`] or `None`: the outcome of the item, `None` while sections of it are missing. An item of which
            a section failed has the error of the first of these, and the highest number of attempts.
        """
        section = outcome.task.section
        if section is None:
            return outcome
        found = self._sections.setdefault(outcome.task.item.id, {})
        found[section.number] = outcome
        if len(found) < section.count:
            return None
        del self._sections[outcome.task.item.id]
        return self._join([found[number] for number in range(section.count)])

    def _join(self, outcomes: list[Outcome]) -> Outcome:
        task = Task(outcomes[0].task.item, attempts=max(outcome.task.attempts for outcome in outcomes))
        warnings = dict.fromkeys(warning for outcome in outcomes for warning in outcome.warnings)
        error = next((outcome.error for outcome in outcomes if outcome.error is not None), None)
        if error is not None:
            return Outcome(task, error=error, warnings=tuple(warnings))
        try:
            result, added = self._join_results([outcome.result or {} for outcome in outcomes])
        except ValueError as problem:
            return Outcome(task, error=describe_error(problem), warnings=tuple(warnings))
        return Outcome(task, result, warnings=tuple(dict.fromkeys([*warnings, *added])))

    def _join_results(self, results: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        """Returns the result of the recording, and the warnings about it as a whole."""
        spans = [_as_span(span) for result in results for span in result["spans"]]
        duration = max(result["duration"] for result in results if result["duration"] is not None)
        options: dict[str, Any] = {"threshold": self._options.threshold, "coverage": self._options.coverage}
        if self._options.timeline:
            speech = _merge_speech([stretch for result in results for stretch in result["speech"]])
            timeline = self._answers.format_timeline(spans, **options)
            return {"duration": duration, "speech": speech, **timeline}, []
        mean = mean_prediction(spans)
        warning = explain_mean(duration, mean is not None, results[0]["others"])
        if mean is None:
            logits, weights = (np.array(values, np.float32) for values in results[0]["alone"])
        else:
            logits, weights = self._answers.logits(mean[0]), mean[1]
        scores = self._answers.scores(logits)
        answer: Any = self._answers.format_item(scores, weights, return_modality_weights=True, **options)
        return {"label": answer["scores"][0]["label"], **answer, "duration": duration}, [warning]


def _as_span(values: list[Any]) -> Span:
    """Returns a span of a section's result, with the precision in which the model returned it."""
    start, end, words, scores, weights = values
    if scores is None:
        return Span(start, end, words)
    return Span(start, end, words, np.array(scores, np.float32), np.array(weights, np.float32))


def _merge_speech(speech: list[list[float]]) -> list[list[float]]:
    """Merges stretches of speech across the borders of sections, as [`SpeechActivity`] merges them."""
    merged: list[list[float]] = []
    for start, end in speech:
        if merged and start - merged[-1][1] <= SPEECH_GAP:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return merged
