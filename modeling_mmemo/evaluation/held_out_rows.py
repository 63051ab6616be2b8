"""The rows of a source that an evaluation scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers.utils import logging

from mmemo.modalities import MODALITIES
from modeling_mmemo.data.clips import check_clips
from modeling_mmemo.data.corpora import CORPORA, find_layout
from modeling_mmemo.data.faces import FaceCache, with_faces, with_sounds
from modeling_mmemo.data.splits import split_by_speaker
from modeling_mmemo.data.unknown_labels import listed
from modeling_mmemo.evaluation.conditions import SPEECH, is_present
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.scoring import held_out
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class HeldOutRows:
    """
    The rows of a source to score.

    Args:
        name (`str`): Name of the source in the results.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        part (`str`): Which rows of the source they are.
        modalities (`tuple[str, ...]`): The modalities that carry the emotion.
    """

    name: str
    rows: Dataset
    part: str
    modalities: tuple[str, ...]

    def having(self, modalities: Sequence[str], combine: Callable[[Iterable[bool]], bool]) -> tuple[Dataset, str]:
        """
        Returns the rows with these modalities, and a description of the rows.

        Args:
            modalities (`Sequence[str]`): Names of modalities.
            combine (`Callable`): `all` for rows with all of them, `any` for rows with at least one.

        Raises:
            ValueError: If there is no such row.
        """
        rows = self.rows.filter(lambda row: combine(is_present(row[modality]) for modality in modalities))
        if not len(rows):
            joined = " and ".join(modalities) if combine is all else " or ".join(modalities)
            raise ValueError(f"No row of {self.name} ({self.part}) has {joined}; leave the source out.")
        left_out = len(self.rows) - len(rows)
        return rows, self.part + (f", {left_out} incomplete rows left out" if left_out else "")


def read_held_out(emotion: MultimodalEmotionPipeline, source: str, args: EvaluationArguments) -> HeldOutRows:
    """
    Reads the rows of a source that are scored, at most `args.limit`.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        source (`str`): See [`read_source`].
        args (`EvaluationArguments`): Options, with the labels of the rows.

    Raises:
        ValueError: If the source or part does not exist, all rows have the same label, or clips cannot be read.
    """
    rows = args.read(source, emotion.processor.context_turns)
    if args.dev_share > 0 and "dev" not in set(rows["split"]):
        # The speakers that `train.py` sets aside.
        rows = split_by_speaker(rows, args.dev_share, seed=0)
    rows, part = held_out(rows, args.split)
    if source not in CORPORA and args.split is None and not part.startswith("test"):
        logger.warning(
            f"{source} has no test part, so all rows are scored: the figures are too good if the model was trained on "
            "them. Add a column split, or pass --split dev with the --dev_share of the training run."
        )
    if args.limit is not None and args.limit < len(rows):
        rows = rows.shuffle(args.seed, keep_in_memory=True).select(range(args.limit))
    _check_labels(source, part, rows, args, list(emotion.model.config.label2id))
    faces = face_cache(emotion, args.cache_dir)
    rows = prepare_files(emotion, rows, faces)
    return HeldOutRows(args.name_of(source), rows, part, _carriers(source, rows, args, faces is not None))


def prepare_files(emotion: MultimodalEmotionPipeline, rows: Dataset, faces: FaceCache | None) -> Dataset:
    """
    Returns rows with the sound of their videos, and without videos that have no face; see [`with_sounds`] and
    [`with_faces`].

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline; files that its model does not encode are not read.
        rows (`datasets.Dataset`): Rows with the columns of `FEATURES`.
        faces (`FaceCache`, *optional*): See [`face_cache`].

    Raises:
        ValueError: If clips or videos cannot be read.
    """
    if emotion.model.config.has_encoder("audio"):
        rows = with_sounds(rows)
        check_clips(rows["audio"])
    if faces is not None:
        check_clips((), rows["video"])
        rows = with_faces(rows, faces)
    return rows


def face_cache(emotion: MultimodalEmotionPipeline, folder: str | Path) -> FaceCache | None:
    """Returns the cache of faces in a folder; `None` for a model that does not encode video."""
    return FaceCache(emotion.processor, folder) if emotion.model.config.has_encoder("video") else None


def _check_labels(source: str, part: str, rows: Dataset, args: EvaluationArguments, labels: list[str]) -> None:
    """Raises a `ValueError` if all rows have the same label."""
    found = set(rows["label"])
    if len(found) < 2:
        raise ValueError(
            f"All {len(rows)} rows of {source} ({part}) that can be scored have the label {found.pop()!r}, so the "
            "figures would only count how often it is predicted. The labels of the source are "
            f"{listed(args.label_counts(source))}; those of the model are {labels}. Map the names of the source with "
            "--label_map, or choose other data or another model."
        )


def _carriers(source: str, rows: Dataset, args: EvaluationArguments, takes_video: bool) -> tuple[str, ...]:
    """Returns the modalities that carry the emotion: of a known corpus by its layout, and video if the model takes it;
    of others those of the rows."""
    present = tuple(modality for modality in MODALITIES if any(map(is_present, rows[modality])))
    if source in CORPORA:
        modality = find_layout(source, args.data_dir).modality
        video = ("video",) if takes_video and "video" in present else ()
        return (*(SPEECH if modality == "both" else (modality,)), *video)
    return present
