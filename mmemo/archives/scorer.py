"""
The worker of an archive job: loads the model once and predicts tasks, whichever engine brings them.

Deliberate choices:
- A task never ends a job: whatever is wrong with it is the `error` of its outcome, in one sentence. What is wrong with
  the model or the options is raised before the first task.
- One thread by default: an engine runs one worker per core.
- Results are plain JSON, and floats survive it exactly, so that they do not depend on how they travel.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmemo.answers import AnswerFormatter
from mmemo.archives.folders import check_exists
from mmemo.archives.reporting import collected_warnings, describe_error
from mmemo.archives.sections import SectionPredictor, check_section_length
from mmemo.archives.tasks import ArchiveItem, Outcome, ScoringOptions, Task
from mmemo.audio.loading import AudioBlocks
from mmemo.items import prefixed
from mmemo.runtime.predictor import EmotionPredictor
from mmemo.storage import fetch, local_path
from mmemo.timeline.windows import TimelineOptions
from mmemo.video.frames import open_video


logger = logging.getLogger(__name__)


class Scorer:
    """
    Predicts the tasks of an archive job.

    Args:
        options ([`ScoringOptions`]): How to predict.
        num_threads (`int`, *optional*, defaults to 1): See [`EmotionGraph`].

    Raises:
        FileNotFoundError, ImportError, OSError: If the model cannot be loaded; see [`EmotionPredictor`].
        ValueError: If an option is invalid, or the model does not support it.

    Example:

    ```python
    >>> scorer = Scorer(ScoringOptions(threshold=0.5))
    >>> (outcome,) = scorer([Task(ArchiveItem("a", path="calls/a.wav"))])
    >>> outcome.result["label"], outcome.error
    ('angry', None)
    ```
    """

    def __init__(self, options: ScoringOptions, num_threads: int | None = 1):
        TimelineOptions(granularity=options.granularity)
        check_section_length(options.section_s)
        self._options = options
        self._predictor = EmotionPredictor(options.model, num_threads=num_threads, revision=options.revision)
        check_modalities(self._predictor.answers, options.model, options.video)
        self._recognition = self._predictor.with_labels(**options.labels)
        self.answers.check_options(threshold=options.threshold, coverage=options.coverage)
        self._sections = SectionPredictor(self._recognition, options)

    @property
    def answers(self) -> AnswerFormatter:
        """Formats the scores of the model, or of candidate labels."""
        return self._recognition.answers

    def __call__(self, tasks: Sequence[Task]) -> list[Outcome]:
        """
        Predicts tasks one by one.

        Args:
            tasks (`Sequence[Task]`): The tasks.

        Returns:
            `list[Outcome]`: Their outcomes, in the same order.
        """
        return [self._score(task) for task in tasks]

    def _score(self, task: Task) -> Outcome:
        warnings: list[str] = []
        try:
            with collected_warnings() as warnings:
                result = _as_json(self._predict(task))
        except Exception as error:  # the other tasks are still predicted
            logger.debug(f"{task.item.id} failed.", exc_info=True)
            return Outcome(task, error=describe_error(error), warnings=tuple(warnings))
        return Outcome(task, result, warnings=tuple(warnings))

    def _predict(self, task: Task) -> dict[str, Any]:
        item = task.item
        inputs = {"text": item.text, "word_times": _open_subtitles(item.word_times), **self._open(item)}
        channel = self._options.channel if item.channel is None else item.channel
        if task.section is not None:
            return self._sections(inputs, task.section, channel)
        options: dict[str, Any] = {
            "channel": channel,
            "threshold": self._options.threshold,
            "coverage": self._options.coverage,
            **self._options.labels,
        }
        if self._options.timeline:
            options |= {"return_timeline": True, "granularity": self._options.granularity}
            return self._predictor(**inputs, **options)
        answer = self._predictor(**inputs, **options, return_modality_weights=True)
        return {"label": answer["scores"][0]["label"], **answer, "duration": _duration(inputs)}

    def _open(self, item: ArchiveItem) -> dict[str, Any]:
        """Opens the recording of an item: its `audio` and, for a job of videos, the face in its `video`."""
        recording: Any = item.path if item.content is None else {"bytes": item.content, "path": item.path or item.id}
        if recording is None:
            if item.word_times is None and not (item.text and item.text.strip()):
                raise ValueError("This item has neither a recording nor a text; add its path or its text.")
            return {}
        local = local_path(recording) if isinstance(recording, str) else None
        if local is not None:
            check_exists(Path(local))
        if not self._options.video:
            return {"audio": self._open_audio(recording)}
        with prefixed("video"):
            video = open_video(recording)
            face = self._predictor.processor.load_video(video, face=self._options.face)
        has_sound = video.sound is not None and "audio" in self.answers.modalities
        return {"video": face, **({"audio": self._open_audio(video.sound, video)} if has_sound else {})}

    def _open_audio(self, audio: Any, owner: Any = None) -> Any:
        extractor = self._predictor.processor.feature_extractor
        if extractor is None:
            return audio  # for the error of the predictor
        with prefixed("audio"):
            return AudioBlocks(audio, target_sampling_rate=extractor.sampling_rate, owner=owner)


def check_modalities(answers: AnswerFormatter, model: str | None, video: bool, has_files: bool = False) -> None:
    """
    Checks that a model has the encoders that a job needs.

    Args:
        answers ([`AnswerFormatter`]): The answers of the model.
        model (`str`, *optional*): Its name, for messages; the embedded model by default.
        video (`bool`): Whether faces are predicted.
        has_files (`bool`, *optional*, defaults to `False`): Whether all inputs are files, not texts alone.

    Raises:
        ValueError: If an encoder is missing.
    """
    if video and "video" not in answers.modalities:
        raise ValueError(
            f"--video needs a model with a video encoder; {model or 'the embedded model'} encodes "
            f"{' and '.join(answers.modalities)} only. Train and export one (docs/faces.md), and pass "
            "it as --model; without --video, the sound of videos is predicted."
        )
    if has_files and not video and "audio" not in answers.modalities:
        remedy = ", or add --video to predict faces" if "video" in answers.modalities else ""
        raise ValueError(
            f"{model} has no audio encoder, which the sound of files needs; choose a model that has one{remedy}."
        )


def _open_subtitles(location: str | None) -> Path | bytes | None:
    """Returns subtitles in a form that [`WordTimes`] lists: a local path, or the content of a URL."""
    local = None if location is None else local_path(location)
    if location is None or local is not None:
        return None if local is None else Path(local)
    with fetch(location) as stream:
        return stream.read()


def _duration(inputs: dict[str, Any]) -> float | None:
    """Returns the length of a recording that was predicted, in seconds; `None` for a text alone."""
    if "audio" in inputs:
        return inputs["audio"].decoded_duration
    return inputs["video"].duration if "video" in inputs else None


def _as_json(result: dict[str, Any]) -> dict[str, Any]:
    """Converts tuples to lists; raises a `ValueError` if JSON cannot represent a number."""
    try:
        return json.loads(json.dumps(result, allow_nan=False))
    except ValueError as error:
        raise ValueError(
            "The model returned a score that is NaN or infinite; check the recording, or export the model again."
        ) from error
