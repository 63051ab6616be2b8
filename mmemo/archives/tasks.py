"""
What the driver of an archive job and its workers exchange: tasks there, outcomes back.

Deliberate choices:
- Tasks contain paths, not sound, so that they are small on their way to another machine. Rows of a dataset that
  contain the sound itself are the exception.
- A long recording is several tasks, each of one section of it, so that it does not hold up the end of the job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmemo.timeline.windows import LABEL_OPTIONS
from mmemo.zero_shot import HYPOTHESIS_TEMPLATE, NONE_LABEL


@dataclass(frozen=True)
class ArchiveItem:
    """
    One input of an archive job, a row of its output.

    Args:
        id (`str`): Its name in the output, unique in the archive.
        path (`str`, *optional*):
            The path or URL of its recording, in any form that [`fetch`] opens; `None` for a text alone.
        content (`bytes`, *optional*): The recording itself, of a dataset that contains it.
        text (`str`, *optional*): The text spoken in it.
        word_times (`str`, *optional*): The path or URL of its subtitles, SRT or WebVTT.
        channel (`int`, *optional*): The audio channel; that of the job, else the mean of all channels, by default.
        columns (`Mapping[str, Any]`): The other columns of its row in a table, which the output contains too.
    """

    id: str
    path: str | None = None
    content: bytes | None = None
    text: str | None = None
    word_times: str | None = None
    channel: int | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """
    A section of a long recording, one of `count`.

    Args:
        number (`int`): Its position, from 0.
        count (`int`): Number of sections of the recording.
        start, end (`float`): Its borders in seconds of the recording; the end of the last one is `inf`.
    """

    number: int
    count: int
    start: float
    end: float


@dataclass(frozen=True)
class Task:
    """
    One unit of work.

    Args:
        item ([`ArchiveItem`]): The input.
        section ([`Section`], *optional*): The section of it to predict; all of it by default.
        attempts (`int`, *optional*, defaults to 1): Number of attempts to predict it, this one included.
    """

    item: ArchiveItem
    section: Section | None = None
    attempts: int = 1


@dataclass(frozen=True)
class Outcome:
    """
    The result of a task, or why there is none.

    Args:
        task ([`Task`]): The task, with the number of attempts that were made.
        result (`dict`, *optional*):
            The prediction, JSON-serializable: `label`, `scores`, `modality_weights`, `duration` and, with timelines,
            `timeline`, `spans` and `speech`, as [`EmotionPredictor`] returns them. For a section, see
            [`SectionJoiner`].
        error (`str`, *optional*): Why there is no result, in one sentence.
        warnings (`tuple[str, ...]`): Warnings about the input, such as that it contains no speech.
    """

    task: Task
    result: dict[str, Any] | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoringOptions:
    """
    How the workers of a job predict; the same in all of them.

    Args:
        model, revision (`str`, *optional*): See [`EmotionPredictor`].
        timeline (`bool`, *optional*, defaults to `False`): Whether to predict timelines.
        granularity (`str`, *optional*, defaults to `"segment"`): See [`TimelineOptions`].
        threshold, coverage (`float`, *optional*): See [`AnswerFormatter`].
        channel (`int`, *optional*): The audio channel; the mean of all channels by default.
        video (`bool`, *optional*, defaults to `False`): Whether to predict the face of a video as well as its sound.
        face (`int`, *optional*): The face of a video, by rank; see [`read_face`].
        candidate_labels, hypothesis_template, none_label (*optional*): See [`~EmotionRecognition.with_labels`].
        section_s (`float`, *optional*, defaults to 1800): Length of the sections of long recordings, in seconds.
    """

    model: str | None = None
    revision: str | None = None
    timeline: bool = False
    granularity: str = "segment"
    threshold: float | None = None
    coverage: float | None = None
    channel: int | None = None
    video: bool = False
    face: int | None = None
    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str | Sequence[str] = HYPOTHESIS_TEMPLATE
    none_label: str | None = NONE_LABEL
    section_s: float = 1800.0

    @property
    def labels(self) -> dict[str, Any]:
        """The options of [`~EmotionRecognition.with_labels`]."""
        return {name: getattr(self, name) for name in LABEL_OPTIONS}
