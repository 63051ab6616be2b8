"""Cross-validation over the speakers of a corpus: one model a fold, each scored on the speakers it has not heard.

A fold that was scored before is not trained again, so an interrupted run goes on where it stopped.
"""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets
from transformers import set_seed

from modeling_mmemo.data.corpora import CORPORA, find_layout, read_corpus
from modeling_mmemo.evaluation.conditions import MODALITIES, score_condition
from modeling_mmemo.evaluation.evaluation_run import corpus_table, results_head
from modeling_mmemo.evaluation.metrics import emotion_metrics
from modeling_mmemo.evaluation.report import summary, write_results
from modeling_mmemo.evaluation.scoring import row_lengths
from modeling_mmemo.pipelines import load_pipeline
from modeling_mmemo.training.training_arguments import Arguments, parse_arguments
from modeling_mmemo.training.training_run import train


def main(argv: list[str]) -> None:
    """
    Cross-validates a training configuration, writes the results to its `output_dir` and prints a summary.

    Args:
        argv (`list[str]`): What follows `eval.py --folds`: a training configuration and flags of `train.py`.

    Raises:
        ValueError: If `argv` does not begin with a configuration file.
    """
    if not argv or argv[0].startswith("-"):
        raise ValueError("--folds needs a training configuration, such as --folds configs/ravdess_folds.yaml.")
    arguments = parse_arguments(argv)
    results = cross_validate(arguments, name=argv[0])
    write_results(results, arguments[-1].output_dir)
    print(summary(results))


def cross_validate(arguments: Arguments, name: str) -> dict[str, Any]:
    """Trains and scores every fold of the one corpus that `arguments` name.

    Args:
        arguments (`Arguments`): Of a training run; `fold`, the output folder and what concerns development data are
            set here, for all speakers of a fold that are not tested are trained on.
        name (`str`): Of the run, in the results.

    Returns:
        `dict` that is `results.json`, as [`~evaluation.run.evaluate`] gives it, with one table over the answers to all
        folds. Its `folds` has the measures of each, and their `mean`, which is what EmoBox reports.

    Raises:
        ValueError: If there are several corpora, or one without folds.
    """
    model_args, data_args, augmentation, training_args = arguments
    corpus = data_args.corpora[0]
    if len(data_args.corpora) > 1 or corpus not in CORPORA or not CORPORA[corpus].folds:
        with_folds = sorted(known for known in CORPORA if CORPORA[known].folds)
        raise ValueError(f"corpora={data_args.corpora} must name one corpus that has folds, of {with_folds}.")
    modality = find_layout(corpus, data_args.data_dir).modality
    parts, scores, measures = [], [], []
    for fold in range(1, len(CORPORA[corpus].folds) + 1):
        folder = Path(training_args.output_dir) / f"fold-{fold}"
        rows = read_corpus(corpus, data_args.data_dir, data_args.labels, fold)
        rows = rows.filter(lambda split: split == "test", input_columns="split")
        if not (folder / "scores.npy").is_file():
            set_seed(training_args.seed)
            fold_args = replace(data_args, fold=fold, dev_share=0.0)
            train((model_args, fold_args, augmentation, replace(training_args, output_dir=str(folder))))
            emotion = load_pipeline(folder)
            lengths = row_lengths(emotion, rows, "text" if modality == "text" else "audio")
            given = set(MODALITIES) if modality == "both" else {modality}
            np.save(folder / "scores.npy", score_condition(emotion, modality, rows, lengths, given))
        fold_scores = np.load(folder / "scores.npy")
        truth = [data_args.labels.index(label) for label in rows["label"]]
        measures.append(emotion_metrics(truth, fold_scores.argmax(axis=1).tolist()))
        parts.append(rows)
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
    mean = {measure: round(statistics.mean(fold[measure] for fold in measures), 4) for measure in measures[0]}
    rounded = [{measure: round(value, 4) for measure, value in fold.items()} for fold in measures]
    return {
        **results_head(name, data_args.labels, training_args.seed),
        "corpora": [{**table, "folds": {"each": rounded, "mean": mean}}],
        "pairs": [],
        "timelines": [],
    }
