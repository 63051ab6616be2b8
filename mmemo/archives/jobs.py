"""
What commands do with each input: predict it as a whole, over time, or as a call.

Deliberate choices:
- An input that cannot be predicted is reported, gets a row with its error, and the run continues.
- Channels with different voices are not averaged without a warning.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmemo.archives.folders import (
    SUBTITLE_SUFFIXES,
    TURNS_SUFFIXES,
    Input,
    check_exists,
    find_channel_companions,
    find_companion,
)
from mmemo.archives.reporting import (
    describe_error,
    progress_bar,
    report_error,
    warnings_about,
)
from mmemo.archives.writing import PredictionWriter
from mmemo.recognition import PROGRESS_FROM
from mmemo.runtime.predictor import EmotionPredictor
from mmemo.timeline.calls import summarize_call
from mmemo.video.frames import open_video


class ReportingPredictor(EmotionPredictor):
    """
    [`EmotionPredictor`] with a progress bar over each long recording.

    Args:
        model (`str`, *optional*), revision (`str`, *optional*): See [`EmotionPredictor`].
        shows_progress (`bool`): Whether to show the bar, on standard error.
    """

    def __init__(self, model: str | None, revision: str | None, shows_progress: bool):
        super().__init__(model, revision=revision)
        self._shows_progress = shows_progress

    def _progress(self, seconds: float | None) -> AbstractContextManager[Any]:
        if not self._shows_progress or seconds is None or seconds < PROGRESS_FROM:
            return nullcontext()
        return progress_bar(round(seconds))


def run_job(
    job: Callable[[Input], dict[str, Any]],
    inputs: Iterable[Input],
    writer: PredictionWriter,
    text: str | None = None,
    advance: Callable[[], None] = lambda: None,
    debug: bool = False,
) -> int:
    """
    Predicts inputs one by one and writes the results.

    Args:
        job (`Callable`): Returns the prediction of an input, such as [`ItemJob`] and [`CallJob`].
        inputs (`Iterable[Input]`): The inputs.
        writer ([`PredictionWriter`]): Writes the results; inputs that its output already contains are skipped.
        text (`str`, *optional*): The text of the inputs.
        advance (`Callable`, *optional*): Called after each input.
        debug (`bool`, *optional*, defaults to `False`): Whether to raise the first error.

    Returns:
        `int`: Number of inputs that could not be predicted.
    """
    failed = 0
    for one in inputs:
        if one.name is None or one.name not in writer.done:
            try:
                if isinstance(one.audio, Path):
                    check_exists(one.audio)
                with warnings_about(one.name):
                    result = job(one)
            except Exception as error:  # the other inputs are still predicted
                if debug:
                    raise
                failed += 1
                report_error(error, one.name or "text")
                writer.add_error(one.name, text, describe_error(error))
            else:
                writer.add(one.name, text, result)
        advance()
    return failed


@dataclass(frozen=True)
class ItemJob:
    """
    Predicts an input as a whole, or its timeline.

    Args:
        predictor ([`EmotionPredictor`]): The model.
        text (`str`, *optional*): The text spoken in the recording, or a text alone.
        srt (`Path`, *optional*): Subtitles, or a folder of them; see [`find_companion`].
        timeline (`bool`, *optional*, defaults to `False`): Whether to predict timelines.
        video (`bool`, *optional*, defaults to `False`): Whether to predict the face of a video as well as its sound.
        options (`dict`, *optional*): Options of the call, such as `threshold` and `channel`.
        plots (`dict`, *optional*): Paths of the plots without suffix; see [`plot_paths`].
    """

    predictor: EmotionPredictor
    text: str | None = None
    srt: Path | None = None
    timeline: bool = False
    video: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    plots: dict[str | None, Path] = field(default_factory=dict)

    def __call__(self, one: Input) -> dict[str, Any]:
        channel = self.options.get("channel")
        words = find_companion(self.srt, one, SUBTITLE_SUFFIXES)
        requested: dict[str, Any] = {"return_timeline": True} if self.timeline else {"return_modality_weights": True}
        video = open_video(one.audio) if self.video else None
        media = {"audio": one.audio} if video is None else {"video": video}
        result = self.predictor(text=self.text, word_times=words, **media, **requested, **self.options)
        if self.plots:
            _plot(result, one.audio if video is None else video.sound, self.plots[one.name], channel)
        return result if self.timeline else {"label": result["scores"][0]["label"], **result}


@dataclass(frozen=True)
class CallJob:
    """
    Predicts the speakers of a call: by channel, or by the turns of a diarization.

    Args:
        predictor ([`EmotionPredictor`]): The model.
        turns (`Path`, *optional*): Speaker turns, or a folder of them; without, each channel is a speaker.
        srt (`Path`, *optional*): Subtitles. With channels, a folder of them; see [`find_channel_companions`].
        summary (`bool`, *optional*, defaults to `False`): Whether to add `summary`; see [`summarize_call`].
        options (`dict`, *optional*): Options of the call, such as `customer` and `threshold`.
        plots (`dict`, *optional*): Paths of the plots without speaker and suffix; see [`plot_paths`].
    """

    predictor: EmotionPredictor
    turns: Path | None = None
    srt: Path | None = None
    summary: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    plots: dict[str | None, Path] = field(default_factory=dict)

    def __call__(self, one: Input) -> dict[str, Any]:
        speakers: dict[str, Any] = {"channels": "split"}
        words: Any = None
        if self.turns is not None:
            turns = find_companion(self.turns, one, TURNS_SUFFIXES)
            if turns is None:
                expected = one.place.with_suffix(TURNS_SUFFIXES[0])
                raise ValueError(f"{self.turns} has no speaker turns of this recording; add {expected}.")
            speakers = {"speaker_turns": turns}
            words = find_companion(self.srt, one, SUBTITLE_SUFFIXES)
        elif self.srt is not None:
            words = find_channel_companions(self.srt, one, SUBTITLE_SUFFIXES) or None
        result = self.predictor(one.audio, word_times=words, return_timeline=True, **speakers, **self.options)
        if self.plots:
            self._plot_speakers(result, one)
        return result | ({"summary": summarize_call(result)} if self.summary else {})

    def _plot_speakers(self, result: dict[str, Any], one: Input) -> None:
        for number, (name, speaker) in enumerate(result["speakers"].items()):
            if speaker.get("timeline"):
                # Names of speakers may contain slashes.
                part = re.sub(r"[^\w .-]", lambda letter: f"%{ord(letter[0]):02X}", name)
                base = self.plots[one.name]
                path = base.with_name(f"{base.name}.{part}")
                channel = number if self.turns is None else None
                _plot({"duration": result["duration"], **speaker}, one.audio, path, channel)


def _plot(result: dict[str, Any], audio: Any, path: Path, channel: int | None) -> None:
    from mmemo.plots import plot_timeline

    path.parent.mkdir(parents=True, exist_ok=True)
    plot_timeline(result, audio=audio, path=path.with_name(f"{path.name}.png"), channel=channel)
