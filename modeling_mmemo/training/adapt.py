"""
Adapts a model to labels of one's own from a few examples: new linear heads on its frozen encoders, in seconds.

Deliberate choices:
- The result is a normal model, with the encoders of the modalities that the data has: everything that loads, exports
  or serves a model works with it.
- Figures are of held-out speakers, or of held-out rows where a label has a single speaker; without either there are
  none. The penalty of a held-out head is chosen without the held-out rows.
- Rows of the test split are left out, as in training.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard
from scipy.special import softmax

from mmemo.modalities import MODALITIES, presence_of
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoModelOutput, MMEmoProcessor
from modeling_mmemo.adapter_mmemo import EMBEDDED_LICENSE, EMBEDDED_MODEL, embedded_model
from modeling_mmemo.data.clips import check_clips, without_item_warnings
from modeling_mmemo.data.source_arguments import SourceArguments
from modeling_mmemo.data.sources import source_name
from modeling_mmemo.data.unknown_labels import listed
from modeling_mmemo.evaluation.bootstrap import speaker_groups
from modeling_mmemo.evaluation.card import make_card, update_card
from modeling_mmemo.evaluation.checkpoints import checkpoint_config
from modeling_mmemo.evaluation.conditions import AS_GIVEN
from modeling_mmemo.evaluation.evaluation_run import corpus_table, model_labels, results_head
from modeling_mmemo.evaluation.report import markdown_table, percent, summary, write_results
from modeling_mmemo.losses_mmemo import problem_type
from modeling_mmemo.pipelines import TASK, MultimodalEmotionPipeline
from modeling_mmemo.training.adapt_rows import FUSED, EmbeddedRows, embed_rows, find_labels, read_labelled, take_shots
from modeling_mmemo.training.calibration import Calibration, calibrate_scores
from modeling_mmemo.training.linear_heads import choose_strength, fit_head, held_out_logits, make_folds
from modeling_mmemo.training.reduction import reduce_model, reduce_processor
from modeling_mmemo.training.training_run import save


@without_item_warnings()
def adapt(
    data: str,
    output: str | Path,
    model: str | Path | None = None,
    shots: int | None = None,
    modalities: Sequence[str] = (),
    sources: SourceArguments | None = None,
    seed: int = 0,
) -> str:
    """
    Fits new heads on a frozen model, saves the model with its card and its cross-validated figures.

    Args:
        data (`str`): A table, folder or corpus of labelled rows; see [`read_source`].
        output (`str` or `Path`): Folder for the model; it must be empty or not exist.
        model (`str` or `Path`, *optional*): Folder or Hub name of the model to adapt; the embedded one by default.
        shots (`int`, *optional*): Rows of each label to use, drawn evenly from its speakers; all by default.
        modalities (`Sequence[str]`, *optional*): The modalities to use; by default all that the rows have.
        sources ([`SourceArguments`], *optional*):
            How to read the data; its `labels` are by default all label names of the data.
        seed (`int`, *optional*, defaults to 0): Seed of the drawn rows and folds.

    Returns:
        `str`: A summary: the figures, the calibration and the commands that follow.

    Raises:
        FileExistsError: If the output folder is not empty.
        FileNotFoundError: If there is no such model.
        ValueError: If the model does not predict one of several labels, the data has no two labels or more than 500, a
            label has no usable row, the rows have a modality that the model lacks, or files cannot be read.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not an empty folder; choose another output folder.")
    if shots is not None and shots < 1:
        raise ValueError(f"shots={shots} must be at least 1, or None for all rows.")
    sources = sources or SourceArguments()
    name = str(embedded_model() if model in (None, EMBEDDED_MODEL) else model)
    _check_base(name)
    base, processor = MMEmoForEmotionRecognition.from_pretrained(name), MMEmoProcessor.from_pretrained(name)
    labels = find_labels(data, sources)
    rows, used = read_labelled(data, replace(sources, labels=labels), modalities, processor.context_turns)
    _check_modalities(data, base.config, used)
    ids = np.array([labels.index(label) for label in rows["label"]])
    if shots is not None:
        kept = take_shots(ids, speaker_groups(list(rows["speaker"]))[0], shots, seed)
        rows, ids = rows.select(kept), ids[kept]
    check_clips(rows["audio"], rows["video"])
    reduced = reduce_model(base, used, labels)
    emotion = MultimodalEmotionPipeline(model=reduced, processor=reduce_processor(processor, used), task=TASK)
    embedded = embed_rows(emotion, rows, ids)
    _check_heads(embedded, reduced, labels)

    reduced.cpu()
    fit_heads(reduced, embedded, seed)
    folds, unit = make_folds(ids, embedded.groups, seed=seed)
    calibration: dict[str, Calibration] = {}
    results = None
    if folds:
        held_out = {
            head: held_out_logits(vectors, ids, embedded.groups, len(labels), folds, seed)
            for head, vectors in embedded.vectors.items()
        }
        calibration = calibrate_heads(reduced, embedded, held_out)
        # Rows without known speakers are groups of their own.
        unit = "rows" if len(set(rows["speaker"]) - {None}) < 2 else unit
        protocol = f"{source_name(data)}, {len(ids)} rows, cross-validated in {len(folds)} folds of {unit}"
        table = score_held_out(reduced, embedded, held_out, source_name(data), protocol, seed)
        results = {**results_head(output.name, labels, seed), "corpora": [table], "pairs": [], "timelines": []}
    _save(emotion, base, output, name, data, embedded, results)
    return describe(output, embedded, labels, results, calibration)


def _check_base(name: str) -> None:
    """Raises a `ValueError` unless a model predicts one of several labels with trained heads."""
    config = checkpoint_config("model", name)
    if not isinstance(config, MMEmoConfig):
        raise ValueError(f"model={name} is a {config.model_type} model; pass one that train.py has written.")
    if problem_type(config) != "single_label_classification":
        raise ValueError(
            f"model={name} has problem_type={problem_type(config)!r}, but a model is adapted to single labels; choose "
            "a model of single labels."
        )
    if config.label_token_ids is not None:
        raise ValueError(
            f"model={name} predicts the words of its labels, not vectors of texts; choose a model that was trained "
            "without text_head=label_words."
        )


def _check_modalities(data: str, config: MMEmoConfig, used: Sequence[str]) -> None:
    if lacking := [name for name in used if not config.has_encoder(name)]:
        encoded = [name for name in MODALITIES if config.has_encoder(name)]
        raise ValueError(
            f"Rows of {data} have {' and '.join(lacking)}, but the model encodes {' and '.join(encoded)}; name the "
            f"modalities to use (--modality {encoded[0]}), or choose another model."
        )


def _check_heads(embedded: EmbeddedRows, model: MMEmoForEmotionRecognition, labels: Sequence[str]) -> None:
    """Raises a `ValueError` if a modality lacks a label, or if the fusion predicts all modalities by one head."""
    config = model.config
    for name in embedded.vectors:
        found = set(embedded.ids[embedded.has(name)].tolist())
        if name != FUSED and len(found) < len(labels):
            missing = [label for index, label in enumerate(labels) if index not in found]
            raise ValueError(
                f"No row of the labels {missing} has {name}, which other rows have, so it could not be predicted from "
                f"it. Add such rows, or name the modalities to use (--modality)."
            )
    kinds = {presence_of(present) for present in embedded.presences()}
    if config.is_multimodal and config.fusion in ("early", "cross_attention") and len(kinds) > 1:
        raise ValueError(
            f"The rows have different modalities ({', '.join(sorted(kinds))}), but a model with fusion="
            f"{config.fusion!r} has one head for all of them; name one of the modalities to use (--modality)."
        )


@torch.no_grad()
def fit_heads(model: MMEmoForEmotionRecognition, embedded: EmbeddedRows, seed: int = 0) -> None:
    """Fits the heads of a model to rows; a fused head without rows of all labels becomes 0, which abstains from the
    vote."""
    num_labels = model.config.num_labels
    for name, vectors in embedded.vectors.items():
        classifier, has = getattr(model, f"{name}_classifier"), embedded.has(name)
        ids, groups = embedded.ids[has], embedded.groups[has]
        if len(np.unique(ids)) < num_labels:
            torch.nn.init.zeros_(classifier.weight)
            torch.nn.init.zeros_(classifier.bias)
            continue
        strength = choose_strength(vectors[has], ids, groups, num_labels, seed)
        head = fit_head(vectors[has], ids, num_labels, strength)
        classifier.weight.copy_(torch.from_numpy(head.weight))
        classifier.bias.copy_(torch.from_numpy(head.bias))


@torch.no_grad()
def combined_logits(
    model: MMEmoForEmotionRecognition,
    embedded: EmbeddedRows,
    heads: Mapping[str, np.ndarray],
    modalities: Sequence[str] = MODALITIES,
) -> np.ndarray:
    """
    Combines logits of heads as the model does, before the temperature.

    Args:
        model (`MMEmoForEmotionRecognition`): The model.
        embedded (`EmbeddedRows`): The rows.
        heads (`dict[str, np.ndarray]`): The logits of each head, `(rows, num_labels)`.
        modalities (`Sequence[str]`, *optional*): The modalities that are used of a row.

    Returns:
        `np.ndarray` of shape `(rows, num_labels)`.
    """
    given = {name: embedded.has(name) for name in embedded.vectors if name in modalities}
    nothing = np.zeros(len(embedded.ids), bool)
    present = np.stack([given.get(name, nothing) for name in model.config.modalities], axis=1)
    embeds: dict[str, Any] = {
        f"{name}_embeds": torch.from_numpy(np.where(has[:, None], embedded.vectors[name], 0.0)).float()
        for name, has in given.items()
    }
    features = MMEmoModelOutput(modality_mask=torch.from_numpy(present), **embeds)
    logits = {name: torch.from_numpy(values).float() for name, values in heads.items()}
    return model.combine_heads(logits, features)[0].numpy()


def calibrate_heads(
    model: MMEmoForEmotionRecognition, embedded: EmbeddedRows, held_out: Mapping[str, np.ndarray]
) -> dict[str, Calibration]:
    """
    Fits temperatures and quantiles to held-out predictions, for the modalities that rows have and for each alone.

    Args:
        model (`MMEmoForEmotionRecognition`): The model, whose configuration gets them.
        embedded (`EmbeddedRows`): The rows.
        held_out (`dict[str, np.ndarray]`): The held-out logits of each head, `(rows, num_labels)`.

    Returns:
        `dict[str, Calibration]`: By the modalities present, named as by [`presence_of`].
    """
    presences = embedded.presences()
    names = list(embedded.rows["speaker"])
    fitted = {}
    for kind in dict.fromkeys([*((name,) for name in embedded.vectors if name != FUSED), *presences]):
        # Of several modalities the fused vector is of all that a row has.
        chosen = [row for row, own in enumerate(presences) if own == kind or (len(kind) == 1 and kind[0] in own)]
        logits = combined_logits(model, embedded, held_out, kind)[chosen]
        speakers = [None if kind == ("text",) else names[row] for row in chosen]
        fitted[presence_of(kind)] = calibrate_scores(logits, embedded.ids[chosen], speakers)
    temperatures = {name: found.temperature for name, found in fitted.items() if found.temperature is not None}
    model.config.temperature = temperatures or 1.0
    quantiles = {name: found.quantiles for name, found in fitted.items() if found.quantiles is not None}
    model.config.conformal_quantiles = quantiles or None
    return fitted


def score_held_out(
    model: MMEmoForEmotionRecognition,
    embedded: EmbeddedRows,
    held_out: Mapping[str, np.ndarray],
    name: str,
    protocol: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the figures of held-out predictions, see [`corpus_table`]; of rows that all have several modalities also
    those of each alone."""
    kinds = {presence_of(present) for present in embedded.presences()}
    headline = kinds.pop() if len(kinds) == 1 else AS_GIVEN
    temperatures = np.array([model.config.temperature_of(presence_of(own)) for own in embedded.presences()])
    logits = combined_logits(model, embedded, held_out) / temperatures[:, None]
    scores = {headline: softmax(logits, axis=1)}
    used = [part for part in embedded.vectors if part != FUSED]
    if headline != AS_GIVEN and len(used) > 1:
        for part in used:
            alone = combined_logits(model, embedded, held_out, [part]) / model.config.temperature_of(part)
            scores[part] = softmax(alone, axis=1)
    return corpus_table(name, protocol, embedded.rows, scores, model_labels(model.config), headline, seed)


def _save(
    emotion: MultimodalEmotionPipeline,
    base: MMEmoForEmotionRecognition,
    output: Path,
    base_name: str,
    data: str,
    embedded: EmbeddedRows,
    results: dict[str, Any] | None,
) -> None:
    """Saves the model, its figures in `results` and its card; encoders of half precision stay so."""
    towers = [weight for tower in base.mmemo.towers.values() for weight in tower.parameters()]
    is_half = all(torch.equal(weight.half().to(weight.dtype), weight) for weight in towers)
    save(emotion.model, emotion.processor, output, "float16" if is_half else "float32")
    is_embedded = Path(base_name) == embedded_model()
    counts = Counter(embedded.rows["label"])
    encoders = "the model embedded in mmemo" if is_embedded else source_name(base_name)
    training_data = (
        f"The encoders are those of {encoders}, unchanged. The heads were fitted on "
        f"{len(embedded.ids)} rows of {source_name(data)}: {listed(counts)}."
    )
    license = EMBEDDED_LICENSE if is_embedded else _license_of(Path(base_name))
    card = make_card(emotion.model.config, output.resolve().name, license, training_data)
    (output / "README.md").write_text(card, encoding="utf-8")
    if (text := Path(base_name) / "LICENSE.md").is_file():
        shutil.copy(text, output)
    if results is not None:
        write_results(results, output / "results")
        update_card(output / "README.md", results)


def _license_of(folder: Path) -> str | None:
    """Returns the licence identifier in the card of a local model."""
    card = folder / "README.md"
    return ModelCard.load(card).data.license if card.is_file() else None


def describe(
    output: Path,
    embedded: EmbeddedRows,
    labels: Sequence[str],
    results: Mapping[str, Any] | None,
    calibration: Mapping[str, Calibration],
) -> str:
    """Returns the summary of [`adapt`]."""
    exported = output.with_name(f"{output.name}-onnx")
    parts = [f"Saved the model to {output}: {len(labels)} labels from {len(embedded.ids)} rows."]
    if results is None:
        rare = [label for label, count in Counter(embedded.rows["label"]).items() if count < 2]
        parts.append(
            f"Nothing was cross-validated, since there is only one row of {', '.join(sorted(rare))}: how well the "
            "model works is unknown, and its scores are not calibrated."
        )
    else:
        (table,) = results["corpora"]
        recalls = [
            [label, str(figures["support"]), percent(figures["recall"])]
            for label, figures in table["per_class"].items()
        ]
        parts += [
            f"{table['protocol']}; chance is a UAR of {100 / len(labels):.1f}:",
            summary(dict(results)),
            markdown_table(["label", "rows", "recall"], recalls),
            "Calibration of the scores:",
            *(f"  {presence}: {found.description}" for presence, found in calibration.items()),
        ]
    return "\n".join(
        [
            *parts,
            "Next:",
            f"  mmemo export {output} --output {exported}",
            f"  mmemo predict FILE --model {exported}",
            f"  mmemo push {output} --repo OWNER/NAME",
        ]
    )
