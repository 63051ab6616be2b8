"""One evaluation run: corpora, simulated pairs and timelines under all conditions that apply."""

from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset

from modeling_mmemo import MMEmoConfig, __version__
from modeling_mmemo.data.corpora import find_layout, read_corpus
from modeling_mmemo.evaluation.bootstrap import LEVEL, SAMPLES
from modeling_mmemo.evaluation.conditions import ABLATION, BLANK, MODALITIES, applicable_conditions, score_condition
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.figures import Figures, label_ids
from modeling_mmemo.evaluation.scoring import held_out, row_lengths
from modeling_mmemo.evaluation.simulated_pairs import follows, simulated_pairs
from modeling_mmemo.evaluation.timelines import timeline_table
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "scikit-learn", "numpy", "librosa", "soxr")
Scores = dict[str, np.ndarray]


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
    return {
        **results_head(args.model or "modeling_mmemo/default", model_labels(emotion.model.config), args.seed),
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


def evaluate_corpus(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> dict[str, Any]:
    """
    Evaluates one corpus; see [`corpus_table`].

    Raises:
        ValueError: If the model does not accept the modality that carries the emotion of the corpus, or no row has it.
    """
    all_rows, part = _read_held_out(emotion, name, args)
    expected = _corpus_modalities(name, args)
    rows = all_rows.filter(lambda row: all(_is_present(row[modality]) for modality in expected))
    if not len(rows):
        raise ValueError(f"No row of {name} ({part}) has {' and '.join(expected)}; leave the corpus out.")
    if len(rows) < len(all_rows):
        part += f", {len(all_rows) - len(rows)} incomplete rows left out"
    available = {modality for modality in _model_modalities(emotion) if all(map(_is_present, rows[modality]))}
    carriers = available & set(expected)
    if not carriers:
        raise ValueError(
            f"The emotion of {name} is in {expected}, but the model accepts {_model_modalities(emotion)}; leave the "
            "corpus out, or choose another model."
        )
    headline = "both" if len(carriers) > 1 else min(carriers)
    names = [headline, *(condition for condition in args.conditions if condition != headline)]
    names = applicable_conditions(names, available, carriers | _context(emotion, rows))
    scores = _score(emotion, rows, names, available, carriers, args)
    protocol = f"{name}, {part}{_limit_note(args)}"
    return corpus_table(name, protocol, rows, scores, model_labels(emotion.model.config), headline, args.seed)


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
        overall figures of all `conditions`; and `per_class`, `confusion` and `reliability` of the headline condition.
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
    }


def evaluate_pairs(
    emotion: MultimodalEmotionPipeline, audio_name: str, text_name: str, args: EvaluationArguments
) -> dict[str, Any]:
    """
    Evaluates simulated pairs of the held-out parts of two corpora; see [`pairs_table`].

    Raises:
        ValueError: If the model accepts only one modality, or the corpora do not carry emotion in audio and text.
    """
    audio_rows, text_rows, parts = _read_pair(emotion, audio_name, text_name, args)
    agreeing, conflicting = (simulated_pairs(audio_rows, text_rows, agree, args.seed) for agree in (True, False))
    both = set(MODALITIES)
    names = list(dict.fromkeys([*ABLATION, *BLANK, *args.conditions]))
    names = applicable_conditions(names, both, both | _context(emotion, agreeing))
    scores = _score(emotion, agreeing, names, both, both, args)
    conflict_scores = _score(emotion, conflicting, ["both"], both, both, args)["both"]
    return pairs_table(
        f"{audio_name} + {text_name}",
        f"Simulated pairs: {parts}",
        agreeing,
        scores,
        conflicting,
        conflict_scores,
        model_labels(emotion.model.config),
        args.seed,
    )


def evaluate_timeline(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> dict[str, Any]:
    """
    Evaluates the timeline of a corpus, or of simulated pairs, joined to one recording; see [`timeline_table`].

    Raises:
        ValueError: If the emotion of a corpus is not in its audio, or a pair is not one of audio and text.
    """
    audio_name, _, text_name = name.partition("+")
    if text_name:
        audio_rows, text_rows, parts = _read_pair(emotion, audio_name, text_name, args)
        rows = simulated_pairs(audio_rows, text_rows, agreeing=True, seed=args.seed)
        protocol = f"Simulated pairs: {parts}"
    else:
        if "audio" not in _corpus_modalities(name, args):
            raise ValueError(
                f"A timeline needs emotion in the audio, but {name} has it in {_corpus_modalities(name, args)}; "
                "choose another corpus, or a pair AUDIO+TEXT."
            )
        rows, part = _read_held_out(emotion, name, args)
        protocol = f"{name}, {part}{_limit_note(args)}"
    return timeline_table(emotion, name.replace("+", " + "), protocol, rows, bool(text_name), args.seed)


def _read_pair(
    emotion: MultimodalEmotionPipeline, audio_name: str, text_name: str, args: EvaluationArguments
) -> tuple[Dataset, Dataset, str]:
    """Returns the audio rows of one corpus, the text rows of another, and a description of both."""
    if _model_modalities(emotion) != MODALITIES:
        raise ValueError(
            f"Pairs need a model of audio and text; this one accepts {_model_modalities(emotion)}. Leave --pairs out."
        )
    for modality, name in zip(MODALITIES, (audio_name, text_name)):
        if modality not in _corpus_modalities(name, args):
            raise ValueError(
                f"The pairs {audio_name}+{text_name} need emotion in the {modality} of {name}, but it is in "
                f"{_corpus_modalities(name, args)}; pairs are named AUDIO+TEXT, such as ravdess+meld."
            )
    audio_rows, audio_part = _read_held_out(emotion, audio_name, args)
    text_rows, text_part = _read_held_out(emotion, text_name, args)
    parts = f"voices of {audio_name} ({audio_part}), each with a random text of {text_name} ({text_part})"
    return audio_rows, text_rows, parts + _limit_note(args)


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
    better = max(MODALITIES, key=lambda modality: table["conditions"][modality]["uar"]["value"])
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
        "conflicting": {**conflict.rows(), "follows": dict(zip((*MODALITIES, "neither"), shares))},
    }


def _read_held_out(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> tuple[Dataset, str]:
    """Returns the held-out rows of a corpus, at most `args.limit`, and which part they are."""
    labels, context_turns = model_labels(emotion.model.config), emotion.processor.context_turns
    rows, part = held_out(read_corpus(name, args.data_dir, labels=labels, context_turns=context_turns))
    if args.limit is not None and args.limit < len(rows):
        rows = rows.shuffle(args.seed, keep_in_memory=True).select(range(args.limit))
    return rows, part


def _is_present(value: Any) -> bool:
    """Whether a row has a modality; a blank text counts as missing."""
    return bool(value.strip() if isinstance(value, str) else value)


def _limit_note(args: EvaluationArguments) -> str:
    return "" if args.limit is None else f", at most {args.limit} rows drawn at random"


def _model_modalities(emotion: MultimodalEmotionPipeline) -> tuple[str, ...]:
    """Returns the modalities that the model has an encoder for."""
    towers = (emotion.model.config.audio_config, emotion.model.config.text_config)
    return tuple(modality for modality, tower in zip(MODALITIES, towers) if tower is not None)


def _context(emotion: MultimodalEmotionPipeline, rows: Dataset) -> set[str]:
    """Returns `{"context"}` if the rows have dialogue context and the model uses it, otherwise an empty set."""
    model_uses_it = emotion.processor.context_turns > 0
    rows_have_it = any(value is not None for name in ("context", "said_by") for value in rows[name])
    return {"context"} if model_uses_it and rows_have_it else set()


def _corpus_modalities(name: str, args: EvaluationArguments) -> tuple[str, ...]:
    """Returns the modalities that carry the emotion of a corpus."""
    modality = find_layout(name, args.data_dir).modality
    return MODALITIES if modality == "both" else (modality,)


def _score(
    emotion: MultimodalEmotionPipeline,
    rows: Dataset,
    names: list[str],
    available: set[str],
    carriers: set[str],
    args: EvaluationArguments,
) -> Scores:
    lengths = row_lengths(emotion, rows, "audio" if "audio" in available else "text")
    return {
        name: score_condition(emotion, name, rows, lengths, carriers, args.batch_size, args.seed) for name in names
    }
