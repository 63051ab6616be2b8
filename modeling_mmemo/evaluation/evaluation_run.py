"""One evaluation: corpora and simulated pairs, under every condition that applies, as one dictionary of results."""

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
    """Scores the corpora and pairs that are asked for.

    Returns:
        `dict` that is `results.json`: the `model`, `versions` and `seed`, the model's `labels`, how intervals were
        made (`bootstrap`), and the tables `corpora`, `pairs` and `timelines`; see [`corpus_table`], [`pairs_table`]
        and [`timeline_table`].
    """
    return {
        **results_head(args.model or "modeling_mmemo/default", model_labels(emotion.model.config), args.seed),
        "corpora": [evaluate_corpus(emotion, name, args) for name in args.corpora],
        "pairs": [evaluate_pairs(emotion, *pair.split("+"), args) for pair in args.pairs],
        "timelines": [evaluate_timeline(emotion, name, args) for name in args.timelines],
    }


def results_head(model: str, labels: list[str], seed: int) -> dict[str, Any]:
    """What `results.json` begins with: which model was scored, and how."""
    return {
        "model": model,
        "versions": {"mmemo": __version__} | {package: version(package) for package in PACKAGES},
        "seed": seed,
        "labels": labels,
        "bootstrap": {"samples": SAMPLES, "level": LEVEL},
    }


def model_labels(config: MMEmoConfig) -> list[str]:
    """A model's labels in the order of its scores."""
    return [config.id2label[index] for index in range(config.num_labels)]


def evaluate_corpus(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> dict[str, Any]:
    """The table of one corpus; see [`corpus_table`].

    Raises:
        ValueError: If the model does not take the modality that carries the emotion of the corpus, or no row has it.
    """
    everything, part = _read(emotion, name, args)
    rows = everything.filter(lambda row: all(_is_given(row[modality]) for modality in _carriers(name, args)))
    if not len(rows):
        raise ValueError(f"No row of {name} ({part}) has {' and '.join(_carriers(name, args))}; leave it out.")
    if len(rows) < len(everything):
        part += f", {len(everything) - len(rows)} incomplete rows left out"
    available = {modality for modality in _taken(emotion) if all(map(_is_given, rows[modality]))}
    carriers = available & set(_carriers(name, args))
    if not carriers:
        raise ValueError(
            f"The emotion of {name} is in {_carriers(name, args)}, but the model takes {_taken(emotion)}; leave the "
            "corpus out, or choose another model."
        )
    headline = "both" if len(carriers) > 1 else min(carriers)
    names = [headline, *(condition for condition in args.conditions if condition != headline)]
    names = applicable_conditions(names, available, carriers | _context(emotion, rows))
    scores = _score(emotion, rows, names, available, carriers, args)
    protocol = f"{name}, {part}{_limited(args)}"
    return corpus_table(name, protocol, rows, scores, model_labels(emotion.model.config), headline, args.seed)


def corpus_table(
    name: str, protocol: str, rows: Dataset, scores: Scores, labels: list[str], headline: str, seed: int = 0
) -> dict[str, Any]:
    """Puts the scores of one set of rows into figures.

    Args:
        name (`str`): Of the table.
        protocol (`str`): Which rows were scored, and by what they are held out.
        rows (`datasets.Dataset`): With `label` and `speaker`.
        scores (`dict[str, np.ndarray]`): Condition to scores of shape `(rows, labels)`.
        labels (`list[str]`): The model's labels, in the order of the scores.
        headline (`str`): The condition that stands for the corpus, and is shown in detail.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict` with `name`, `protocol`, `headline`, `rows`, `groups` and `resampled` (`"speakers"` or `"rows"`); the
        overall figures of all `conditions`; and `per_class`, `confusion` and `reliability` of the headline.
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
    """The table of simulated pairs of the held-out parts of two corpora; see [`pairs_table`].

    Raises:
        ValueError: If the model takes one modality only, or the corpora do not carry emotion in audio and text.
    """
    voices, sentences, parts = _read_pair(emotion, audio_name, text_name, args)
    agreeing, conflicting = (simulated_pairs(voices, sentences, agree, args.seed) for agree in (True, False))
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
    """The table of the recording that a corpus, or simulated pairs, make when joined; see [`timeline_table`].

    Raises:
        ValueError: If the emotion of a corpus is not in its audio, or a pair is not one of audio and text.
    """
    audio_name, _, text_name = name.partition("+")
    if text_name:
        voices, sentences, parts = _read_pair(emotion, audio_name, text_name, args)
        rows, protocol = simulated_pairs(voices, sentences, agreeing=True, seed=args.seed), f"Simulated pairs: {parts}"
    else:
        if "audio" not in _carriers(name, args):
            raise ValueError(f"A timeline needs voices, and the emotion of {name} is in {_carriers(name, args)}.")
        rows, part = _read(emotion, name, args)
        protocol = f"{name}, {part}{_limited(args)}"
    return timeline_table(emotion, name.replace("+", " + "), protocol, rows, bool(text_name), args.seed)


def _read_pair(
    emotion: MultimodalEmotionPipeline, audio_name: str, text_name: str, args: EvaluationArguments
) -> tuple[Dataset, Dataset, str]:
    """The voices of one corpus, the sentences of another, and what they are."""
    if _taken(emotion) != MODALITIES:
        raise ValueError(f"Pairs need a model of audio and text; this one takes {_taken(emotion)}. Leave --pairs out.")
    for modality, name in zip(MODALITIES, (audio_name, text_name)):
        if modality not in _carriers(name, args):
            raise ValueError(
                f"The pairs {audio_name}+{text_name} need emotion in the {modality} of {name}, but it is in "
                f"{_carriers(name, args)}; pairs are named AUDIO+TEXT, such as ravdess+meld."
            )
    voices, audio_part = _read(emotion, audio_name, args)
    sentences, text_part = _read(emotion, text_name, args)
    parts = f"voices of {audio_name} ({audio_part}), each with a random text of {text_name} ({text_part})"
    return voices, sentences, parts + _limited(args)


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
    """Puts the scores of simulated pairs into figures.

    Args:
        name, protocol, labels, seed: As in [`corpus_table`].
        agreeing, conflicting (`datasets.Dataset`): See [`simulated_pairs`].
        scores (`dict[str, np.ndarray]`): Of the agreeing pairs, under all of `ABLATION` and `BLANK` at least.
        conflict_scores (`np.ndarray` of shape `(rows, labels)`): Of the conflicting pairs.

    Returns:
        `dict`: that of [`corpus_table`] for the agreeing pairs, and `gain`, both modalities less the better (by UAR)
        of the two alone; `losses`, what a modality alone has over the same beside a blank or noisy partner; and
        `conflicting`, how often the answer `follows` audio, text or neither.
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


def _read(emotion: MultimodalEmotionPipeline, name: str, args: EvaluationArguments) -> tuple[Dataset, str]:
    labels, context_turns = model_labels(emotion.model.config), emotion.processor.context_turns
    rows, part = held_out(read_corpus(name, args.data_dir, labels=labels, context_turns=context_turns))
    if args.limit is not None and args.limit < len(rows):
        rows = rows.shuffle(args.seed, keep_in_memory=True).select(range(args.limit))
    return rows, part


def _is_given(value: Any) -> bool:
    """Whether a row has this modality; a blank text is none."""
    return bool(value.strip() if isinstance(value, str) else value)


def _limited(args: EvaluationArguments) -> str:
    return "" if args.limit is None else f", at most {args.limit} rows drawn at random"


def _taken(emotion: MultimodalEmotionPipeline) -> tuple[str, ...]:
    """The modalities that the model has an encoder for."""
    towers = (emotion.model.config.audio_config, emotion.model.config.text_config)
    return tuple(modality for modality, tower in zip(MODALITIES, towers) if tower is not None)


def _context(emotion: MultimodalEmotionPipeline, rows: Dataset) -> set[str]:
    """Says that the rows are of dialogues, if they are and the model reads them."""
    reads = emotion.processor.context_turns > 0
    said = any(value is not None for name in ("context", "said_by") for value in rows[name])
    return {"context"} if reads and said else set()


def _carriers(name: str, args: EvaluationArguments) -> tuple[str, ...]:
    """The modalities that carry the emotion of a corpus."""
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
