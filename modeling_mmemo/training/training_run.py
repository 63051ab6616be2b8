"""One training run, from the encoders to a folder that `from_pretrained` and `pipeline` load."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from transformers.utils import logging

from mmemo.modalities import MODALITIES, PRESENCES, presence_of
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoProcessor
from modeling_mmemo.adapter_mmemo import EMBEDDED_LICENSE, EMBEDDED_MODEL, reference
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.clips import check_clips, without_item_warnings
from modeling_mmemo.data.corpora import CORPORA, find_layout
from modeling_mmemo.data.faces import FaceCache, Faces, sound_of, with_faces
from modeling_mmemo.data.schema import FILE_COLUMNS, STORED_FEATURES
from modeling_mmemo.data.splits import leak_check, split_by_speaker
from modeling_mmemo.data.unknown_labels import listed
from modeling_mmemo.evaluation.evaluation_run import model_labels
from modeling_mmemo.training.adapters import EmotionAdapter, log_trainable, set_trainable, unquantized
from modeling_mmemo.training.augmented_copies import augmented_copies, pooled_layers
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.calibration import MIN_ROWS, calibrate_scores, fit_biases
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import PooledStates, TowerStates, standardize, tower_states
from modeling_mmemo.training.rows import NEUTRAL, EmotionRows, StreamedRows
from modeling_mmemo.training.run_summary import run_summary
from modeling_mmemo.training.trainer import EmotionTrainer, build_trainer
from modeling_mmemo.training.training_arguments import (
    Arguments,
    DataArguments,
    EmotionTrainingArguments,
    ModelArguments,
)
from modeling_mmemo.training.vocabulary import cut_vocabulary


logger = logging.get_logger(__name__)

# Simulated pairs of development rows: their name, by the modalities of the rows that get a text.
PAIRS = {("audio",): "pairs", ("video",): "video_pairs", ("audio", "video"): "audio+video_pairs"}
# For each set of modalities, the development sets that can calibrate its scores; the first available is used.
CALIBRATED_ON = {
    name: (name, *(pairs for given, pairs in PAIRS.items() if presence_of({*given, "text"}) == name))
    for name in PRESENCES
}


class RunRows(NamedTuple):
    """
    The rows of a run.

    Args:
        train (`EmotionRows` or `StreamedRows`): The training rows.
        dev (`dict[str, EmotionRows]`): See [`development_sets`].
        tested (`list[str]`): The sources that have test rows, which are not read here.
    """

    train: EmotionRows | StreamedRows
    dev: dict[str, EmotionRows]
    tested: list[str]


@without_item_warnings()
def train(arguments: Arguments) -> EmotionTrainer:
    """
    Trains, calibrates, evaluates and saves a model, and prints a summary.

    Args:
        arguments (`Arguments`): The options of the run, see [`parse_arguments`].

    Returns:
        [`EmotionTrainer`]: The Trainer of the finished model.
    """
    model_args, data_args, augmentation, training_args = arguments
    model, processor, new_branches = build_model(model_args, data_args.labels)
    # Rows get the label ids of the model.
    data_args = replace(data_args, labels=model_labels(model.config))
    if model_args.vocabulary_size is not None:
        rows, _, _ = read_rows(data_args, ["text"], processor.context_turns)
        texts = (text for text in rows["text"] if text is not None)
        processor.tokenizer = cut_vocabulary(
            model.mmemo.text_tower, processor.tokenizer, texts, model_args.vocabulary_size
        )
    _check_resumed_labels(training_args.resume_from_checkpoint, data_args.labels)
    collator = EmotionCollator(processor, augmentation)
    # 4-bit weights are on the GPU already, and cannot be moved.
    is_movable = model_args.text_mode != "qlora"
    if is_movable:
        model.to(training_args.device)
    check_bias_correction(model_args, model)
    train_rows, dev, tested = build_rows(data_args, model_args, augmentation, model, processor, training_args)
    for modality in model_args.bias_correction:
        if (count := len(dev.get(modality, ()))) < MIN_ROWS:
            raise ValueError(
                f"bias_correction={model_args.bias_correction} contradicts corpora={data_args.corpora} with dev_share="
                f"{data_args.dev_share}: {count} development rows have {modality} alone, at least {MIN_ROWS} are "
                "needed. Set dev_share, or leave bias_correction out."
            )
    standardize(model, new_branches, train_rows, collator)
    if is_movable:
        # The Trainer places the model itself, in parts under FSDP.
        model.cpu()
    if model_args.class_weights == "balanced":
        model.config.class_weights = balanced_weights(train_rows, len(data_args.labels), model_args.class_weight_power)
    elif model_args.class_weights == "corpus":
        train_rows.loss_weights = corpus_loss_weights(train_rows, model_args.class_weight_power)
    trained = set_trainable(model, model_args, new_branches)
    log_trainable(trained)

    trainer = build_trainer(trained, train_rows, dev, collator, training_args)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    model = trained = trainer.model
    output_dir = Path(training_args.output_dir)
    adapter = trained if isinstance(trained, EmotionAdapter) else None
    if adapter is not None:
        if trainer.is_world_process_zero():
            adapter.save_pretrained(output_dir / "adapter")
        if model_args.text_mode == "qlora":
            trained = unquantized(trained, model_args, data_args.labels)
        model = trained.merge_and_unload()

    if model_args.stored_dtype == "float16":
        round_towers(model)
    finished = build_trainer(model, None, dev, collator, training_args)
    calibration, metrics = {}, {}
    if dev:
        for modality in model_args.bias_correction:
            correct_bias(finished, modality)
        calibration = calibrate(finished)
        metrics = finished.evaluate()
        finished.save_metrics("eval", metrics)
    if finished.is_world_process_zero():
        save(model, processor, output_dir, model_args.stored_dtype)
        if adapter is not None:
            adapter.save_config(output_dir / "adapter", model.config)
            processor.save_pretrained(output_dir / "adapter")
        license = _inherited_license(model_args)
        print(run_summary(output_dir, data_args, dev, tested, metrics, calibration, license))
    return finished


def _inherited_license(args: ModelArguments) -> str | None:
    """Returns the licence of the embedded weights if a run starts from them."""
    names = (args.model_name_or_path, *(getattr(args, f"{modality}_encoder") for modality in MODALITIES))
    starts_embedded = any(name is not None and reference(name)[0] == EMBEDDED_MODEL for name in names)
    return EMBEDDED_LICENSE if starts_embedded else None


def _check_resumed_labels(checkpoint: str | None, labels: list[str]) -> None:
    """Raises a `ValueError` if a checkpoint has other labels."""
    if checkpoint is None or not (Path(checkpoint) / "config.json").is_file():
        return
    known = model_labels(MMEmoConfig.from_pretrained(checkpoint))
    if known != labels:
        raise ValueError(
            f"labels={labels} contradicts resume_from_checkpoint={checkpoint}, whose labels are {known}. Resume with "
            "the options of the interrupted run."
        )


def build_rows(
    args: DataArguments,
    model_args: ModelArguments,
    augmentation: Augmentation,
    model: MMEmoForEmotionRecognition,
    processor: MMEmoProcessor,
    training_args: EmotionTrainingArguments,
) -> RunRows:
    """
    Returns the training rows, and the development rows by the modalities they have.

    Args:
        args (`DataArguments`): The sources of the rows, with the labels of the model.
        model_args (`ModelArguments`): Which encoders are frozen.
        augmentation (`Augmentation`): Augments training clips.
        model (`MMEmoForEmotionRecognition`): Its frozen encoders compute the cached states.
        processor (`MMEmoProcessor`): Converts clips and texts to model inputs.
        training_args (`EmotionTrainingArguments`): Seed and evaluation.

    Raises:
        ValueError: If the sources have no training rows, or no development rows for an evaluation, or if an option
            contradicts the processor.
    """
    towers = model.mmemo.towers
    if args.context_dropout > 0 and not processor.context_turns:
        raise ValueError(
            f"context_dropout={args.context_dropout} contradicts context_turns=0: this model takes no context. Set "
            "context_turns, or set context_dropout to 0."
        )
    if args.neutral_text_probability > 0 and NEUTRAL not in args.labels:
        raise ValueError(
            f"neutral_text_probability={args.neutral_text_probability} contradicts labels={args.labels}, which lack "
            f"{NEUTRAL!r}. Set it to 0."
        )
    if augmentation.silence_probability > 0 and "audio" in towers and processor.speech_padding_s is not None:
        raise ValueError(
            f"silence_probability={augmentation.silence_probability} contradicts cut_to_speech=True: clips are cut to "
            "their speech after the augmentation, which removes the silence again. Set one of them to 0 or false."
        )
    if args.augmented_copies > 0:
        pooled_layers(model.config)
    if args.streaming:
        stream = read_streams(args, list(towers), processor.context_turns)
        streamed = StreamedRows(
            stream,
            labels=args.labels,
            processor=processor,
            augmentation=augmentation,
            seed=training_args.seed,
            faces=FaceCache(processor, args.cache_dir) if "video" in towers else None,
            context_dropout=args.context_dropout,
        )
        return RunRows(streamed, {}, [])

    rows, weights, tested = read_rows(args, list(towers), processor.context_turns)
    faces = None
    if "video" in towers:
        # One process fills the caches, the others load them.
        with training_args.main_process_first(desc="following faces"):
            cache = FaceCache(processor, args.cache_dir)
            rows, weights = _only_with_faces(rows, weights, cache)
            faces = Faces(cache, rows["video"])
    splits = list(rows["split"])
    train_indices = [i for i, split in enumerate(splits) if split == "train"]
    dev_indices = [i for i, split in enumerate(splits) if split == "dev"]
    if not train_indices:
        raise ValueError(f"corpora={args.corpora} have no training rows; their splits are {sorted(set(splits))}.")
    if not dev_indices and training_args.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy={training_args.eval_strategy.value} contradicts corpora={args.corpora} with dev_share="
            f"{args.dev_share}: there are no development rows. Set dev_share, or set eval_strategy to no."
        )
    states: dict[str, TowerStates | PooledStates] = {}
    if args.cache_states:
        with training_args.main_process_first(desc="caching the states of frozen encoders"):
            for modality, tower in towers.items():
                if modality == "audio" and args.augmented_copies > 0:
                    states[modality] = augmented_copies(
                        tower,
                        model.config,
                        processor,
                        rows,
                        copied=train_indices,
                        copies=args.augmented_copies,
                        augmentation=augmentation,
                        seed=training_args.seed,
                        cache_dir=args.cache_dir,
                        num_workers=training_args.dataloader_num_workers,
                    )
                elif model_args.mode_of(modality) == "frozen":
                    states[modality] = tower_states(modality, tower, processor, rows, args.cache_dir, faces)
    select = partial(
        EmotionRows,
        rows,
        labels=args.labels,
        states=states,
        processor=processor,
        faces=faces,
        seed=training_args.seed,
    )
    train_rows = select(
        train_indices,
        augmentation=augmentation,
        pair_probability=args.pair_probability,
        neutral_text_probability=args.neutral_text_probability,
        blank_probability=args.blank_probability,
        context_dropout=args.context_dropout,
        pair_texts={"train": train_indices, "dev": dev_indices}[args.pair_split],
        weights=[weights[i] for i in train_indices],
    )
    if args.pair_split == "dev" and not any(train_rows.texts_of):
        raise ValueError(
            f"pair_split=dev contradicts corpora={args.corpora} with dev_share={args.dev_share}: there are no "
            "development rows with text alone. Set dev_share, or set pair_split to train."
        )
    dev = development_sets(train_rows, dev_indices, partial(select, by_length=True), args.pair_probability > 0)
    return RunRows(train_rows, dev, tested)


def development_sets(
    rows: EmotionRows, indices: Sequence[int], select: Callable[..., EmotionRows], has_pairs: bool
) -> dict[str, EmotionRows]:
    """
    Returns development rows by the modalities that they have, as named by [`presence_of`], and simulated pairs.

    Rows with a video are also in the sets of fewer modalities for which there are no rows otherwise, without the
    others: a face or a voice alone is what the model often gets.

    Args:
        rows (`EmotionRows`): Rows of the run.
        indices (`Sequence[int]`): The development rows among them.
        select (`Callable`): Returns [`EmotionRows`] with some of the rows, given these and other arguments.
        has_pairs (`bool`): Whether to pair rows without a text with a text of their label, see `PAIRS`.
    """
    kinds = {index: rows.kind_of(index) for index in indices}
    dev = {}
    for size in range(1, len(MODALITIES) + 1):
        for given in combinations(MODALITIES, size):
            chosen = [index for index in indices if kinds[index] == given] or [
                index for index in indices if "video" in kinds[index] and set(given) < set(kinds[index])
            ]
            if chosen:
                dev[presence_of(given)] = select(chosen, modalities=given)
    for given, name in PAIRS.items() if has_pairs and ("text",) in kinds.values() else ():
        if (alone := dev.get(presence_of(given))) is not None:
            modalities = {*given, "text"}
            dev[name] = select(alone.indices, modalities=modalities, pair_probability=1.0, pair_texts=indices)
    return dev


def read_rows(
    args: DataArguments, modalities: Collection[str], context_turns: int = 0
) -> tuple[Dataset, list[float], list[str]]:
    """
    Returns all rows of `args.corpora` except test rows, the weight of each row, and the sources with test rows.

    Args:
        args (`DataArguments`): The sources of the rows, with the labels of the model.
        modalities (`Collection[str]`): The modalities of the model.
        context_turns (`int`): Number of dialogue turns that the model takes before a text.

    Raises:
        ValueError: If a corpus has no row for the model's modalities, a speaker or text occurs in two splits, clips
            cannot be read, or all training rows have the same label.
    """
    parts, weights, tested = [], [], []
    for source, weight in zip(args.corpora, args.corpus_weights):
        rows = args.read(source, context_turns, fold=args.fold)
        if args.dev_share > 0 and "dev" not in set(rows["split"]):
            rows = split_by_speaker(rows, args.dev_share, seed=0)
        if not args.allow_leaks:
            leak_check(rows, by=args.leak_columns)
        tested += [source] if "test" in set(rows["split"]) else []
        rows = rows.filter(lambda split: split != "test", input_columns="split")
        check_clips((), _read_videos(rows, modalities))
        rows = _keep_modalities(rows, source, args, modalities).filter(_has_any, input_columns=list(MODALITIES))
        if not len(rows):
            raise ValueError(
                f"{source} has no row for a model of {' and '.join(modalities)}; leave it out of corpora."
            )
        parts.append(rows)
        weights += [weight] * len(rows)
    rows = concatenate_datasets(parts)
    check_clips(rows["audio"])
    _check_labels(rows, args)
    return rows, weights, tested


def _read_videos(rows: Dataset, modalities: Collection[str]) -> list[dict | None]:
    """Returns the videos that a model of these modalities reads: for their faces, or for the sound of rows without
    audio."""
    if "video" in modalities:
        return list(rows["video"])
    clips = zip(rows["audio"], rows["video"]) if "audio" in modalities else ()
    return [video for audio, video in clips if audio is None]


def _only_with_faces(rows: Dataset, weights: list[float], cache: FaceCache) -> tuple[Dataset, list[float]]:
    """Returns rows after [`with_faces`], without those that had nothing but a video, and their weights."""
    rows = with_faces(rows, cache)
    kept = [index for index, values in enumerate(zip(*(rows[name] for name in MODALITIES))) if _has_any(*values)]
    return rows.select(kept), [weights[index] for index in kept]


def _has_any(*values) -> bool:
    """Whether a row has any of some columns."""
    return any(value is not None for value in values)


def _check_labels(rows: Dataset, args: DataArguments) -> None:
    """Raises a `ValueError` if the training rows have a single label; logs labels without training rows."""
    found: dict[str, set[str]] = {"train": set(), "dev": set()}
    for split, label in zip(rows["split"], rows["label"]):
        found[split].add(label)
    if len(found["train"]) == 1:
        counts = "; ".join(f"{source}: {listed(args.label_counts(source))}" for source in args.corpora)
        raise ValueError(
            f"All training rows have the label {found['train'].pop()!r}, so there is nothing to learn; the model's "
            f"labels are {args.labels}, those of the data {counts}. Add rows of another label, or name the labels of "
            "the data (--labels)."
        )
    if found["train"] and (missing := [label for label in args.labels if label not in found["train"]]):
        logger.warning(f"No training row has the labels {missing}; the model does not learn them.")
    if len(found["dev"]) == 1:
        logger.warning(
            f"All development rows have the label {found['dev'].pop()!r}, so their scores do not measure recognition. "
            "Set aside more rows (--dev_share)."
        )


def read_streams(args: DataArguments, modalities: Collection[str], context_turns: int = 0) -> IterableDataset:
    """Returns a stream of the training rows of all `args.corpora`, sampled by their weights; see [`read_rows`]."""
    streams = [
        _keep_modalities(args.read(source, context_turns, True, args.fold), source, args, modalities).filter(
            lambda split, *values: split == "train" and _has_any(*values), input_columns=["split", *MODALITIES]
        )
        for source in args.corpora
    ]
    shares = np.array(args.corpus_weights) / sum(args.corpus_weights)
    return interleave_datasets(streams, shares.tolist(), seed=0, stopping_strategy="all_exhausted")


def _keep_modalities(rows, source: str, args: DataArguments, modalities: Collection[str]):
    """Removes modalities that the model lacks, and those that carry no emotion in a known corpus; adds the sound of
    videos, as in [`with_sounds`]."""
    carries = find_layout(source, args.data_dir).modality if source in CORPORA else "both"
    kept = [name for name in modalities if carries in (name, "both") or name == "video"]

    def keep(batch: dict[str, list]) -> dict[str, list]:
        columns = {name: batch[name] if name in kept else [None] * len(batch[name]) for name in FILE_COLUMNS}
        if "audio" in kept:
            clips = zip(batch["audio"], batch["video"])
            columns["audio"] = [sound_of(video) if audio is None else audio for audio, video in clips]
        columns["text"] = [text if "text" in kept and text and text.strip() else None for text in batch["text"]]
        return columns

    # As a plain struct, because encoding an Audio column again would need torchcodec.
    return rows.cast(STORED_FEATURES).map(keep, batched=True, features=STORED_FEATURES)


def balanced_weights(rows: EmotionRows, num_labels: int, power: float = 1.0) -> list[float]:
    """
    Returns the weight of each label in the loss: its number of rows in an epoch to the power of -`power`.

    The mean weight of all rows is 1. With `power=1` all labels have the same total weight.
    """
    counts = np.zeros(num_labels)
    for weight, group in rows.groups.items():
        counts += weight * np.bincount([rows.label_ids[i] for i in group], minlength=num_labels)
    weights = np.maximum(counts, 1) ** -power
    return (counts.sum() / (counts * weights).sum() * weights).tolist()


def corpus_loss_weights(rows: EmotionRows, power: float = 1.0) -> dict[tuple[str, int], float]:
    """
    Returns the weight of a row in the loss by its corpus and label id.

    Within a corpus the weight is the label's number of rows in an epoch to the power of -`power`; with `power=1` all
    labels of a corpus have the same total weight. A corpus counts by the square root of its number of rows, and the
    mean weight of all rows is 1.
    """
    counts: dict[tuple[str, int], float] = defaultdict(float)
    for weight, group in rows.groups.items():
        for index in group:
            counts[rows.corpora[index], rows.label_ids[index]] += weight
    counts = {key: count for key, count in counts.items() if count > 0}
    sizes: dict[str, float] = defaultdict(float)
    totals: dict[str, float] = defaultdict(float)
    for (corpus, _), count in counts.items():
        sizes[corpus] += count
        totals[corpus] += count ** (1 - power)
    scale = sum(sizes.values()) / sum(size**0.5 for size in sizes.values())
    return {
        (corpus, label): scale * sizes[corpus] ** 0.5 * count**-power / totals[corpus]
        for (corpus, label), count in counts.items()
    }


@torch.no_grad()
def round_towers(model: MMEmoForEmotionRecognition) -> None:
    """Rounds the encoders to half precision, so that the model is evaluated as it is stored."""
    for tower in model.mmemo.towers.values():
        for parameter in tower.parameters():
            parameter.copy_(parameter.half())


def check_bias_correction(args: ModelArguments, model: MMEmoForEmotionRecognition) -> None:
    """Raises a `ValueError` if a modality of `bias_correction` has no head whose biases determine its predictions."""
    for modality in args.bias_correction:
        head = getattr(model, f"{modality}_classifier")
        if head is None or head.bias is None or (model.config.is_multimodal and model.vote is None):
            raise ValueError(
                f"bias_correction={args.bias_correction} contradicts the model, whose predictions for {modality} "
                "alone do not come from a head with biases. It needs this modality, and fusion=late or hybrid if the "
                "model has several; leave bias_correction out."
            )


@torch.no_grad()
def correct_bias(trainer: EmotionTrainer, modality: str) -> None:
    """Adds the biases of [`fit_biases`], fitted on the development rows of `modality` alone, to its head."""
    predicted = trainer.predict(trainer.eval_dataset[modality])
    biases = fit_biases(predicted.predictions, predicted.label_ids)
    bias = getattr(trainer.model, f"{modality}_classifier").bias
    bias.add_(torch.from_numpy(biases).to(bias))


def calibrate(trainer: EmotionTrainer) -> dict[str, str]:
    """
    Fits the model's temperatures and quantiles to its predictions on the development sets.

    Returns:
        `dict[str, str]`: What was fitted, or why not, by the modalities present.
    """
    fitted = {}
    for presence, names in CALIBRATED_ON.items():
        for name in [name for name in names if name in trainer.eval_dataset][:1]:
            rows = trainer.eval_dataset[name]
            predicted = trainer.predict(rows)
            # A text reveals neither the voice nor the face of its speaker.
            names = list(rows.rows["speaker"])
            speakers = [names[index] if rows.kind_of(index) != ("text",) else None for index in rows.indices]
            fitted[presence] = calibrate_scores(predicted.predictions, predicted.label_ids, speakers)
            if fitted[presence].temperature is None:
                logger.warning(
                    f"The scores for {presence} stay the uncalibrated softmax: {fitted[presence].description}."
                )
    config = trainer.model.config
    temperatures = {name: found.temperature for name, found in fitted.items() if found.temperature is not None}
    config.temperature = temperatures or 1.0
    quantiles = {name: found.quantiles for name, found in fitted.items() if found.quantiles is not None}
    config.conformal_quantiles = quantiles or None
    return {name: found.description for name, found in fitted.items()}


def save(model: MMEmoForEmotionRecognition, processor: MMEmoProcessor, folder: str | Path, stored_dtype: str) -> None:
    """Saves model and processor, the encoders in `stored_dtype`; they load in single precision."""
    weights = model.state_dict()
    if stored_dtype == "float16":
        weights = {name: weight.half() if "_tower." in name else weight for name, weight in weights.items()}
    model.save_pretrained(folder, state_dict={name: weight.contiguous() for name, weight in weights.items()})
    processor.save_pretrained(folder)
