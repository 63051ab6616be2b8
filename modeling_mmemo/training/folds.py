"""
Cross-validation: over the speakers of a corpus, or over corpora. Each model is evaluated on the speakers, or on the
corpus, that it was not trained on.

A run that was evaluated with the same options and data is not trained again, so an interrupted cross-validation
continues.
"""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import set_seed
from transformers.utils import logging

from mmemo.modalities import MODALITIES
from modeling_mmemo import MMEmoConfig
from modeling_mmemo.data.clips import check_clips
from modeling_mmemo.data.corpora import CORPORA, find_layout
from modeling_mmemo.data.fingerprints import file_fingerprint, rows_fingerprint
from modeling_mmemo.data.sources import source_name
from modeling_mmemo.evaluation.checkpoints import checkpoint_config
from modeling_mmemo.evaluation.conditions import ABLATIONS, AS_GIVEN, score_condition
from modeling_mmemo.evaluation.evaluation_run import corpus_table, results_head
from modeling_mmemo.evaluation.held_out_rows import face_cache, prepare_files
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.evaluation.report import FOLD_MEASURES, summary, write_results
from modeling_mmemo.evaluation.scoring import row_lengths
from modeling_mmemo.pipelines import load_pipeline
from modeling_mmemo.training.build import choose_labels
from modeling_mmemo.training.fold_arguments import FoldArguments
from modeling_mmemo.training.training_arguments import Arguments, ModelArguments, parse_cross_validation
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
        ValueError: See [`parse_folds`], [`cross_validate`] and [`leave_corpora_out`].
    """
    cross_validate_and_report(*parse_folds(argv))


def parse_folds(argv: list[str]) -> tuple[Arguments, FoldArguments, str]:
    """
    Returns the options of the training runs and of the cross-validation, and the name of their file.

    Raises:
        ValueError: If `argv` does not begin with a configuration file, or two options contradict each other.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError("--folds needs a training configuration, such as --folds configs/ravdess_folds.yaml.")
    return *parse_cross_validation(argv), argv[0]


def cross_validate_and_report(arguments: Arguments, folds: FoldArguments, name: str) -> None:
    """
    Cross-validates, writes the results to the `output_dir` and prints a summary.

    With `leave_out` it leaves out corpora, see [`leave_corpora_out`], otherwise speakers, see [`cross_validate`].
    """
    results = leave_corpora_out(arguments, folds, name) if folds.leave_out else cross_validate(arguments, name)
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
        raise ValueError(
            f"corpora={data_args.corpora} must name one corpus that has folds, of {with_folds}; or name corpora to "
            "leave out in leave_out."
        )
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
        condition, carriers = _tested_as(model_args, modality, rows)
        (fold_scores,) = _score_run(fold_args, rows_fingerprint(rows), [(condition, carriers, test_rows)])
        true_ids = [data_args.labels.index(label) for label in test_rows["label"]]
        metrics.append(emotion_metrics(true_ids, fold_scores.argmax(axis=1).tolist()))
        parts.append(test_rows)
        scores.append(fold_scores)

    table = corpus_table(
        corpus,
        f"{corpus}, {len(parts)} folds of unseen speakers",
        concatenate_datasets(parts),
        {condition: np.concatenate(scores)},
        data_args.labels,
        condition,
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


def leave_corpora_out(arguments: Arguments, folds: FoldArguments, name: str) -> dict[str, Any]:
    """
    Trains a model without each of the corpora to leave out and evaluates it on that corpus; trains one more on all
    corpora if there are others to test on.

    A corpus is tested on as a whole, whatever its splits. Models are trained as by `train.py`, without the test split
    of a corpus.

    Args:
        arguments (`Arguments`): Options of a training run on all corpora. The output folders are set here.
        folds (`FoldArguments`): The corpora to leave out, and others to test on.
        name (`str`): Name of the run in the results.

    Returns:
        `dict`, the content of `results.json`, see [`evaluate`], with one table per corpus. Its `left_out` has the
        `corpora` that were left out, and over these the `mean` of each measure, and `mean_over_present_labels`, that
        over the labels that each corpus has.

    Raises:
        ValueError: If a corpus has no rows, or clips to test on cannot be read.
    """
    model_args, data_args, augmentation, training_args = arguments
    labels, turns = choose_labels(model_args, data_args.labels), model_args.context_turns or 0
    data_args = replace(data_args, labels=labels)
    arguments = (model_args, data_args, augmentation, training_args)
    rows = {corpus: data_args.read(corpus, turns) for corpus in (*data_args.corpora, *folds.test_corpora)}
    for corpus in (*folds.leave_out, *folds.test_corpora):
        check_clips(rows[corpus]["audio"], rows[corpus]["video"] if _takes_video(model_args) else ())
    fingerprints = {corpus: rows_fingerprint(part) for corpus, part in rows.items()}
    runs = {f"without-{corpus}": (_other_corpora(data_args.corpora, corpus), [corpus]) for corpus in folds.leave_out}
    if folds.test_corpora:
        runs["all"] = (data_args.corpora, folds.test_corpora)
    tables = []
    for folder, (trained, tested) in runs.items():
        tests = []
        for corpus in tested:
            modality = find_layout(corpus, data_args.data_dir).modality
            tests.append((*_tested_as(model_args, modality, rows[corpus]), rows[corpus]))
        scores = _score_run(
            _on_corpora(arguments, trained, folder),
            " ".join(fingerprints[corpus] for corpus in (*trained, *tested)),
            tests,
        )
        tables += [
            corpus_table(
                corpus,
                f"{corpus}, whole corpus, by a model trained on {', '.join(map(source_name, trained))}",
                rows[corpus],
                {condition: corpus_scores},
                labels,
                condition,
                training_args.seed,
            )
            for corpus, (condition, _, _), corpus_scores in zip(tested, tests, scores)
        ]
    return {
        **results_head(name, labels, training_args.seed),
        "corpora": tables,
        "left_out": {"corpora": folds.leave_out, **_means(tables[: len(folds.leave_out)])},
        "pairs": [],
        "timelines": [],
    }


def _takes_video(args: ModelArguments) -> bool:
    """Whether the models of a run encode video."""
    if args.model_name_or_path is None:
        return args.video_encoder is not None
    config = checkpoint_config("model_name_or_path", args.model_name_or_path)
    return isinstance(config, MMEmoConfig) and config.has_encoder("video")


def _tested_as(args: ModelArguments, modality: str, rows: Dataset) -> tuple[str, set[str]]:
    """Returns the condition under which rows of a corpus are tested, and the modalities that carry the emotion: those
    of its layout and, if the models encode it, video, which not all rows need to have."""
    carriers = set(ABLATIONS[modality].needs)
    if _takes_video(args) and any(video is not None for video in rows["video"]):
        return AS_GIVEN, carriers | {"video"}
    return modality, carriers


def _other_corpora(corpora: Sequence[str], left_out: str) -> list[str]:
    return [corpus for corpus in corpora if corpus != left_out]


def _on_corpora(arguments: Arguments, corpora: Sequence[str], folder: str) -> Arguments:
    """Returns the options of a run on some of its corpora, with a subfolder of its output folder."""
    model_args, data_args, augmentation, training_args = arguments
    weights = dict(zip(data_args.corpora, data_args.corpus_weights))
    return (
        model_args,
        replace(data_args, corpora=list(corpora), corpus_weights=[weights[corpus] for corpus in corpora]),
        augmentation,
        replace(training_args, output_dir=str(Path(training_args.output_dir) / folder)),
    )


def _means(tables: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the means of WA, UAR and F1 over tables, over all labels and over the labels that each one has."""
    overall = [table["conditions"][table["headline"]] for table in tables]
    present = [table.get("present_labels", figures) for table, figures in zip(tables, overall)]
    return {
        key: {
            measure: round(statistics.mean(figures[measure]["value"] for figures in each), 4)
            for measure in FOLD_MEASURES
        }
        for key, each in (("mean", overall), ("mean_over_present_labels", present))
    }


def _score_run(arguments: Arguments, data: str, tests: Sequence[tuple[str, set[str], Dataset]]) -> list[np.ndarray]:
    """
    Trains a model and scores rows; loads the scores instead if the options and the data did not change since.

    Args:
        arguments (`Arguments`): Options of the training run.
        data (`str`): Fingerprint of the rows to train and to test on.
        tests (`Sequence[tuple[str, set[str], Dataset]]`):
            The condition, the modalities that carry the emotion, and the rows, of each test set.

    Returns:
        `list[np.ndarray]`: The scores of each test set, `(rows, labels)`.
    """
    folder = Path(arguments[-1].output_dir)
    saved, record = folder / "scores.npy", folder / "scores_fingerprint.txt"
    fingerprint = _fingerprint(arguments, data)
    ends = np.cumsum([len(rows) for *_, rows in tests])[:-1]
    if saved.is_file() and record.is_file() and record.read_text(encoding="utf-8") == fingerprint:
        return np.split(np.load(saved), ends)
    if saved.is_file():
        logger.warning(f"{folder}: the options or the data changed since this run was evaluated; training it again.")
    set_seed(arguments[-1].seed)
    train(arguments)
    emotion = load_pipeline(folder)
    faces = face_cache(emotion, arguments[1].cache_dir) if _takes_video(arguments[0]) else None
    scores = []
    for condition, carriers, rows in tests:
        files = rows if faces is None else prepare_files(emotion, rows, faces)
        measured = next(modality for modality in MODALITIES if modality in carriers)
        lengths = row_lengths(emotion, files, measured, faces)
        scores.append(score_condition(emotion, condition, files, lengths, carriers, faces=faces))
    np.save(saved, np.concatenate(scores))
    record.write_text(fingerprint, encoding="utf-8")
    return scores


def _fingerprint(arguments: Arguments, data: str) -> str:
    """Returns a hash of the options of a run, of the files of its encoders, and of the fingerprint of its rows."""
    model_args, data_args, augmentation, training_args = arguments
    options = asdict(model_args) | asdict(data_args) | asdict(augmentation) | training_args.to_dict()
    content = {name: value for name, value in options.items() if name not in _IRRELEVANT}
    content |= {"encoder files": _encoder_files(model_args), "rows": data}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _encoder_files(args: ModelArguments) -> list[str]:
    """Returns a fingerprint of each file of the models that the run starts from, if they are folders."""
    folders = (args.model_name_or_path, *(getattr(args, f"{modality}_encoder") for modality in MODALITIES))
    files = (
        path for folder in folders if folder and Path(folder).is_dir() for path in sorted(Path(folder).rglob("*"))
    )
    return [file_fingerprint(path) for path in files if path.is_file()]
