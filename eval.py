"""Evaluates a model on held-out rows and simulated pairs, or cross-validates a training configuration.

python eval.py --data_dir data --corpora ravdess meld emodb goemotions --pairs ravdess+meld --timelines ravdess
python eval.py --model runs/calls --corpora calls.csv --dev_share 0.1 --split dev
python eval.py --folds configs/ravdess_folds.yaml --data_dir data
python eval.py --folds configs/leave_one_corpus_out.yaml --data_dir data
"""

import sys
from collections.abc import Callable
from functools import partial


def prepare(argv: list[str]) -> Callable[[], None]:
    """Parses the flags, and returns a function that evaluates."""
    if argv[:1] == ["--folds"]:  # trains one model per fold
        from modeling_mmemo.training.folds import cross_validate_and_report, parse_folds

        return partial(cross_validate_and_report, *parse_folds(argv[1:]))
    from modeling_mmemo.evaluation.evaluate_command import evaluate_and_report, parse_evaluation

    return partial(evaluate_and_report, parse_evaluation(argv, description=__doc__))


def main(argv: list[str] | None = None) -> None:
    prepare(sys.argv[1:] if argv is None else argv)()


if __name__ == "__main__":
    from modeling_mmemo.evaluation.script import run_script

    run_script(prepare, sys.argv[1:])
