"""One evaluation run: corpora, simulated pairs and timelines under all conditions that apply."""

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset

from mmemo.modalities import MODALITIES
from modeling_mmemo import MMEmoConfig, __version__
from modeling_mmemo.data.clips import without_item_warnings
from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.evaluation.bootstrap import LEVEL, SAMPLES
from modeling_mmemo.evaluation.conditions import (
    ABLATION,
    AS_GIVEN,
    BLANK,
    SPEECH,
    ablation_of,
    applicable_conditions,
    is_present,
    score_condition,
)
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments, split_pair
from modeling_mmemo.evaluation.figures import Figures, label_ids
from modeling_mmemo.evaluation.held_out_rows import face_cache, read_held_out
from modeling_mmemo.evaluation.scoring import restrict_scores, row_lengths
from modeling_mmemo.evaluation.simulated_pairs import follows, simulated_pairs
from modeling_mmemo.evaluation.timelines import timeline_table
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "scikit-learn", "numpy", "librosa", "soxr")
Scores = dict[str, np.ndarray]


@without_item_warnings()
def evaluate(emotion: MultimodalEmotionPipeline, args: EvaluationArguments) -> dict[str, Any]:
    """
    Evaluates a pipeline on the requested corpora, pairs and timelines.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        args (`EvaluationArguments`): What to evaluate.

    Returns:
        `dict`, the content of `results.json`: `model`, `versions`, `seed`, the model's `labels`, the settings of the
        intervals (`bootstrap`), and the tables `corpora`, `pairs` and `timelines`; see [`corpus_table`],
        [`pairs_table`] and [`timeline_table`].
    """
    labels = model_labels(emotion.model.config)
    if unknown := [label for label in args.labels if label not in labels]:
        raise ValueError(f"labels={args.labels}: the model does not have {unknown}; its labels are {labels}.")
    args = replace(args, labels=args.labels or labels)
    return {
        **results_head(args.model or "modeling_mmemo/default", labels, args.seed),
        "corpora": [evaluate_corpus(emotion, name, args) for name in args.corpora],
        "pairs": [evaluate_pairs(emotion, *pair.split("+"), args) for pair in args.pairs],
        "timelines": [evaluate_timeline(emotion, name, args) for name in args.timelines],
    }


def results_head(model: str, labels: list[str], seed: int) -> dict[str, Any]:
    """Returns the first fields of `results.json`: which model was evaluated, and how."""
    return {
        "model": model,
        "versions": {"mmemo": __version__} | {package: version(package) for package in PACKAGES},
        "seed": seed,
        "labels": labels,
        "bootstrap": {"samples": SAMPLES, "level": LEVEL},
    }


def model_labels(config: MMEmoConfig) -> list[str]:
    """Returns a model's labels in the order of its scores."""
    return [config.id2label[index] for index in range(config.num_labels)]


def evaluate_corpus(emotion: MultimodalEmotionPipeline, source: str, args: EvaluationArguments) -> dict[str, Any]:
    """
    Evaluates one source; see [`corpus_table`].

    A row of a known corpus must have every modality that carries emotion there. Rows of any other source are scored
    with the modalities that they have.

    Raises:
        ValueError: If the model does not accept the modality that carries the emotion of the source, no row has it, or
            all rows have the same label.
    """
    data, accepted = read_held_out(emotion, source, args), _model_modalities(emotion)
    faces = face_cache(emotion, args.cache_dir)
    # Some rows of a corpus with videos lack a video, or have none with a face.
    is_complete = source in CORPORA and not (faces is not None and "video" in data.modalities)
    expected, combine = (data.modalities, all) if is_complete else (accepted, any)
    rows, part = data.having(expected, combine)
    present = {modality: list(map(is_present, rows[modality])) for modality in accepted}
    available = {modality for modality in accepted if all(present[modality])}
    given = {modality for modality in accepted if any(present[modality])} & set(data.modalities)
    if not given:
        raise ValueError(
            f"The emotion of {source} is in {data.modalities}, but the model accepts {accepted}; leave the source "
            "out, or choose another model."
        )
    carriers = available & given
    headline = AS_GIVEN if given > available else ablation_of(carriers)
    names = [name for name in (headline, *args.conditions) if name != AS_GIVEN]
    names = applicable_conditions(list(dict.fromkeys(names)), available, carriers | _context(emotion, rows))
    measured = next(modality for modality in MODALITIES if modality in available | given)
    lengths = row_lengths(emotion, rows, measured, faces)
    scores = {
        name: score_condition(
            emotion, name, rows, lengths, given if name == AS_GIVEN else carriers, args.batch_size, args.seed, faces
        )
        for name in ([AS_GIVEN, *names] if headline == AS_GIVEN else names)
    }
    protocol = f"{data.name}, {part}{_limit_note(args)}"
    return corpus_table(data.name, protocol, rows, scores, model_labels(emotion.model.config), headline, args.seed)


def corpus_table(
    name: str, protocol: str, rows: Dataset, scores: Scores, labels: list[str], headline: str, seed: int = 0
) -> dict[str, Any]:
    """
    Computes the figures of one set of rows.

    Args:
        name (`str`): Name of the table.
        protocol (`str`): Description of the scored rows, and of how they are held out.
        rows (`datasets.Dataset`): Rows with `label` and `speaker`.
        scores (`dict[str, np.ndarray]`): Scores of shape `(rows, labels)` by condition.
        labels (`list[str]`): The model's labels, in the order of the scores.
        headline (`str`): Main condition of the corpus, reported in detail.
        seed (`int`, *optional*, defaults to 0): Seed of the bootstrap.

    Returns:
        `dict` with `name`, `protocol`, `headline`, `rows`, `groups` and `resampled` (`"speakers"` or `"rows"`); the
        overall figures of all `conditions`; and `per_class`, `confusion` and `reliability` of the headline condition;
        of rows that lack labels of the model also `present_labels`, see [`present_label_figures`]; of rows in several
        languages also `languages`, see [`language_figures`].
    """
    figures = Figures(list(rows["label"]), list(rows["speaker"]), labels, seed)
    return {
        "name": name,
        "protocol": protocol,
        "headline": headline,
        **figures.rows(),
        "conditions": {condition: figures.overall(values) for condition, values in scores.items()},
        "per_class": figures.per_class(scores[headline]),
        "confusion": figures.confusion(scores[headline]),
        "reliability": figures.reliability(scores[headline]),
        **present_label_figures(rows, scores[headline], labels, seed),
        **language_figures(rows, scores[headline], labels, seed),
    }


def present_label_figures(rows: Dataset, scores: np.ndarray, labels: list[str], seed: int = 0) -> dict[str, Any]:
    """
    Computes the figures of rows that lack labels of the model, as if it had only the labels that occur in them.

    Args:
        rows (`datasets.Dataset`): Rows with `label` and `speaker`.
        scores (`np.ndarray` of shape `(rows, labels)`): Their scores.
        labels, seed: See [`corpus_table`].

    Returns:
        `dict` with `present_labels`: the `labels` that occur, and the overall figures of the scores restricted to
        them, see [`restrict_scores`]. Empty if all labels occur, or only one.
    """
    truth = list(rows["label"])
    occurring = set(truth)
    present = [label for label in labels if label in occurring]
    if len(present) in (1, len(labels)):
        return {}
    restricted = restrict_scores(scores, [labels.index(label) for label in present])
    figures = Figures(truth, list(rows["speaker"]), present, seed)
    return {"present_labels": {"labels": present, **figures.overall(restricted)}}


def language_figures(rows: Dataset, scores: np.ndarray, labels: list[str], seed: int = 0) -> dict[str, Any]:
    """
    Computes the figures of each language of a set of rows.

    Args:
        rows (`datasets.Dataset`): Rows with `label`, `speaker` and `language`.
        scores (`np.ndarray` of shape `(rows, labels)`): Their scores.
        labels, seed: See [`corpus_table`].

    Returns:
        `dict` with `languages`, by code `rows`, `uar` and `macro_f1`, the latter two over the labels that occur in the
        language; rows of unknown language are left out. Empty if the rows have fewer than two languages.
    """
    of_row = np.array(rows["language"] if "language" in rows.column_names else [], dtype=object)
    found = sorted({language for language in of_row if language is not None})
    if len(found) < 2:
        return {}
    truth, speakers = np.array(rows["label"], dtype=object), np.array(rows["speaker"], dtype=object)
    parts = {}
    for language in found:
        chosen = np.flatnonzero(of_row == language)
        overall = Figures(list(truth[chosen]), list(speakers[chosen]), labels, seed).overall(scores[chosen])
        parts[language] = {"rows": len(chosen), "uar": overall["uar"], "macro_f1": overall["macro_f1"]}
    return {"languages": parts}


def evaluate_pairs(
    emotion: MultimodalEmotionPipeline, audio_source: str, text_source: str, args: EvaluationArguments
) -> dict[str, Any]:
    """
    Evaluates simulated pairs of the held-out parts of two sources; see [`pairs_table`].

    Raises:
        ValueError: If the model accepts only one modality, or the sources do not carry emotion in audio and text.
    """
    audio_rows, text_rows, name, protocol = _read_pair(emotion, audio_source, text_source, args)
    agreeing, conflicting = (simulated_pairs(audio_rows, text_rows, agree, args.seed) for agree in (True, False))
    both = set(SPEECH)
    names = list(dict.fromkeys([*ABLATION, *BLANK, *args.conditions]))
    names = applicable_conditions(names, both, both | _context(emotion, agreeing))
    scores = _score_pairs(emotion, agreeing, names, args)
    conflict_scores = _score_pairs(emotion, conflicting, ["both"], args)["both"]
    return pairs_table(
        name,
        protocol,
        agreeing,
        scores,
        conflicting,
        conflict_scores,
        model_labels(emotion.model.config),
        args.seed,
    )


def evaluate_timeline(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> dict[str, Any]:
    """
    Evaluates the timeline of a source, or of simulated pairs, joined to one recording; see [`timeline_table`].

    Raises:
        ValueError: If the emotion of a source is not in its audio, or a pair is not one of audio and text.
    """
    source, text_source = split_pair(name)
    if text_source is not None:
        audio_rows, text_rows, name, protocol = _read_pair(emotion, source, text_source, args)
        rows = simulated_pairs(audio_rows, text_rows, agreeing=True, seed=args.seed)
    else:
        data = read_held_out(emotion, source, args)
        if "audio" not in data.modalities:
            raise ValueError(
                f"A timeline needs emotion in the audio, but {data.name} has it in {data.modalities}; choose another "
                "source, or a pair AUDIO+TEXT."
            )
        rows, part = data.having(("audio",), all)
        name, protocol = data.name, f"{data.name}, {part}{_limit_note(args)}"
    return timeline_table(emotion, name, protocol, rows, text_source is not None, args.seed)


def _read_pair(
    emotion: MultimodalEmotionPipeline, audio_source: str, text_source: str, args: EvaluationArguments
) -> tuple[Dataset, Dataset, str, str]:
    """Returns the audio rows of one source, the text rows of another, the name of the pairs and their description."""
    if not set(SPEECH) <= set(_model_modalities(emotion)):
        raise ValueError(
            f"Pairs need a model of audio and text; this one accepts {_model_modalities(emotion)}. Leave --pairs out."
        )
    data = [read_held_out(emotion, source, args) for source in (audio_source, text_source)]
    for modality, part in zip(SPEECH, data):
        if modality not in part.modalities:
            raise ValueError(
                f"The pairs {audio_source}+{text_source} need emotion in the {modality} of {part.name}, but it is in "
                f"{part.modalities}; pairs are named AUDIO+TEXT, such as ravdess+meld."
            )
    (audio_rows, audio_part), (text_rows, text_part) = (
        part.having((modality,), all) for modality, part in zip(SPEECH, data)
    )
    audio, text = (part.name for part in data)
    parts = f"voices of {audio} ({audio_part}), each with a random text of {text} ({text_part}){_limit_note(args)}"
    return audio_rows, text_rows, f"{audio} + {text}", f"Simulated pairs: {parts}"


def pairs_table(
    name: str,
    protocol: str,
    agreeing: Dataset,
    scores: Scores,
    conflicting: Dataset,
    conflict_scores: np.ndarray,
    labels: list[str],
    seed: int = 0,
) -> dict[str, Any]:
    """
    Computes the figures of simulated pairs.

    Args:
        name, protocol, labels, seed: See [`corpus_table`].
        agreeing, conflicting (`datasets.Dataset`): See [`simulated_pairs`].
        scores (`dict[str, np.ndarray]`):
            Scores of the agreeing pairs by condition; at least all of `ABLATION` and `BLANK`.
        conflict_scores (`np.ndarray` of shape `(rows, labels)`): Scores of the conflicting pairs.

    Returns:
        `dict` of [`corpus_table`] for the agreeing pairs, with `gain`: both modalities minus the better single one (by
        UAR); `losses`: each modality alone minus the same modality with a blank or noisy partner; and `conflicting`:
        how often the prediction `follows` audio, text or neither.
    """
    figures = Figures(list(agreeing["label"]), list(agreeing["speaker"]), labels, seed)
    table = corpus_table(name, protocol, agreeing, scores, labels, "both", seed)
    better = max(SPEECH, key=lambda modality: table["conditions"][modality]["uar"]["value"])
    intact = {condition: "audio" if BLANK[condition].blank_text else "text" for condition in BLANK}
    conflict = Figures(list(conflicting["label"]), list(conflicting["speaker"]), labels, seed)
    text_truth = label_ids(list(conflicting["text_label"]), labels)
    shares = conflict.shares(follows(conflict_scores, conflict.truth, text_truth))
    return {
        **table,
        "gain": {"over": better, **figures.difference(scores["both"], scores[better])},
        "losses": {
            condition: {"against": modality, **figures.difference(scores[modality], scores[condition])}
            for condition, modality in intact.items()
        },
        "conflicting": {**conflict.rows(), "follows": dict(zip((*SPEECH, "neither"), shares))},
    }


def _limit_note(args: EvaluationArguments) -> str:
    return "" if args.limit is None else f", at most {args.limit} rows drawn at random"


def _model_modalities(emotion: MultimodalEmotionPipeline) -> tuple[str, ...]:
    """Returns the modalities that the model has an encoder for."""
    return tuple(filter(emotion.model.config.has_encoder, MODALITIES))


def _context(emotion: MultimodalEmotionPipeline, rows: Dataset) -> set[str]:
    """Returns `{"context"}` if the rows have dialogue context and the model uses it, otherwise an empty set."""
    model_uses_it = emotion.processor.context_turns > 0
    rows_have_it = any(value is not None for name in ("context", "said_by") for value in rows[name])
    return {"context"} if model_uses_it and rows_have_it else set()


def _score_pairs(
    emotion: MultimodalEmotionPipeline,
    rows: Dataset,
    names: list[str],
    args: EvaluationArguments,
) -> Scores:
    """Scores pairs of audio and text."""
    lengths = row_lengths(emotion, rows, "audio")
    return {
        name: score_condition(emotion, name, rows, lengths, set(SPEECH), args.batch_size, args.seed) for name in names
    }
