"""
Cross-validation over the speakers of a corpus: one model per fold, evaluated on the speakers that it was not trained
on.

A fold that was evaluated with the same options and data is not trained again, so an interrupted run continues.
"""

import hashlib
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import set_seed
from transformers.utils import logging

from modeling_mmemo.data.corpora import CORPORA, find_layout
from modeling_mmemo.data.fingerprints import file_fingerprint, rows_fingerprint
from modeling_mmemo.evaluation.conditions import MODALITIES, score_condition
from modeling_mmemo.evaluation.evaluation_run import corpus_table, results_head
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.evaluation.report import summary, write_results
from modeling_mmemo.evaluation.scoring import row_lengths
from modeling_mmemo.pipelines import load_pipeline
from modeling_mmemo.training.build import choose_labels
from modeling_mmemo.training.training_arguments import Arguments, ModelArguments, parse_arguments
from modeling_mmemo.training.training_run import train


logger = logging.get_logger(__name__)

# Options that change no score.
_IRRELEVANT = ("output_dir", "run_name", "cache_dir", "report_to", "disable_tqdm", "logging_steps", "logging_strategy")


def main(argv: list[str]) -> None:
    """
    Cross-validates a training configuration, writes the results to its `output_dir` and prints a summary.

    Args:
        argv (`list[str]`): The arguments after `eval.py --folds`: a training configuration and flags of `train.py`.

    Raises:
        ValueError: See [`parse_folds`] and [`cross_validate`].
    """
    cross_validate_and_report(*parse_folds(argv))


def parse_folds(argv: list[str]) -> tuple[Arguments, str]:
    """
    Returns the options of a cross-validation, and the name of their file.

    Raises:
        ValueError: If `argv` does not begin with a configuration file, or two options contradict each other.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError("--folds needs a training configuration, such as --folds configs/ravdess_folds.yaml.")
    return parse_arguments(argv), argv[0]


def cross_validate_and_report(arguments: Arguments, name: str) -> None:
    """Cross-validates, writes the results to the `output_dir` and prints a summary; see [`cross_validate`]."""
    results = cross_validate(arguments, name)
    write_results(results, arguments[-1].output_dir)
    print(summary(results))


def cross_validate(arguments: Arguments, name: str) -> dict[str, Any]:
    """
    Trains and evaluates every fold of a corpus.

    Args:
        arguments (`Arguments`):
            Options of a training run on one corpus. `fold`, `dev_share` and the output folder are set here: all
            speakers of a fold that are not tested are trained on.
        name (`str`): Name of the run in the results.

    Returns:
        `dict`, the content of `results.json`, see [`evaluate`], with one table over the predictions of all folds. Its
        `folds` has the metrics of each fold and their `mean`, which is what EmoBox reports.

    Raises:
        ValueError: If there are several corpora, or the corpus has no folds.
    """
    model_args, data_args, augmentation, training_args = arguments
    data_args = replace(data_args, labels=choose_labels(model_args, data_args.labels), dev_share=0.0)
    corpus = data_args.corpora[0]
    if len(data_args.corpora) > 1 or corpus not in CORPORA or not CORPORA[corpus].folds:
        with_folds = sorted(known for known in CORPORA if CORPORA[known].folds)
        raise ValueError(f"corpora={data_args.corpora} must name one corpus that has folds, of {with_folds}.")
    modality = find_layout(corpus, data_args.data_dir).modality
    parts, scores, metrics = [], [], []
    for fold in range(1, len(CORPORA[corpus].folds) + 1):
        fold_args = (
            model_args,
            replace(data_args, fold=fold),
            augmentation,
            replace(training_args, output_dir=str(Path(training_args.output_dir) / f"fold-{fold}")),
        )
        rows = data_args.read(corpus, fold=fold)
        test_rows = rows.filter(lambda split: split == "test", input_columns="split")
        fold_scores = _score_fold(fold_args, modality, rows, test_rows)
        true_ids = [data_args.labels.index(label) for label in test_rows["label"]]
        metrics.append(emotion_metrics(true_ids, fold_scores.argmax(axis=1).tolist()))
        parts.append(test_rows)
        scores.append(fold_scores)

    table = corpus_table(
        corpus,
        f"{corpus}, {len(parts)} folds of unseen speakers",
        concatenate_datasets(parts),
        {modality: np.concatenate(scores)},
        data_args.labels,
        modality,
        training_args.seed,
    )
    mean = {metric: round(statistics.mean(fold[metric] for fold in metrics), 4) for metric in metrics[0]}
    rounded = [{metric: round(value, 4) for metric, value in fold.items()} for fold in metrics]
    return {
        **results_head(name, data_args.labels, training_args.seed),
        "corpora": [{**table, "folds": {"each": rounded, "mean": mean}}],
        "pairs": [],
        "timelines": [],
    }


def _score_fold(arguments: Arguments, modality: str, rows: Dataset, test_rows: Dataset) -> np.ndarray:
    """Returns the scores `(test rows, labels)` of a fold: saved ones of the same options and data, or else trains."""
    folder = Path(arguments[-1].output_dir)
    scores, record = folder / "scores.npy", folder / "scores_fingerprint.txt"
    fingerprint = _fingerprint(arguments, rows)
    if scores.is_file() and record.is_file() and record.read_text(encoding="utf-8") == fingerprint:
        return np.load(scores)
    if scores.is_file():
        logger.warning(f"{folder}: the options or the data changed since this fold was evaluated; training it again.")
    set_seed(arguments[-1].seed)
    train(arguments)
    emotion = load_pipeline(folder)
    lengths = row_lengths(emotion, test_rows, "text" if modality == "text" else "audio")
    available = set(MODALITIES) if modality == "both" else {modality}
    fold_scores = score_condition(emotion, modality, test_rows, lengths, available)
    np.save(scores, fold_scores)
    record.write_text(fingerprint, encoding="utf-8")
    return fold_scores


def _fingerprint(arguments: Arguments, rows: Dataset) -> str:
    """Returns a hash of the options of a run, of the files of its encoders, and of its rows."""
    model_args, data_args, augmentation, training_args = arguments
    options = asdict(model_args) | asdict(data_args) | asdict(augmentation) | training_args.to_dict()
    content = {name: value for name, value in options.items() if name not in _IRRELEVANT}
    content |= {"encoder files": _encoder_files(model_args), "rows": rows_fingerprint(rows)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _encoder_files(args: ModelArguments) -> list[str]:
    """Returns a fingerprint of each file of the models that the run starts from, if they are folders."""
    folders = (args.model_name_or_path, args.audio_encoder, args.text_encoder)
    files = (
        path for folder in folders if folder and Path(folder).is_dir() for path in sorted(Path(folder).rglob("*"))
    )
    return [file_fingerprint(path) for path in files if path.is_file()]
