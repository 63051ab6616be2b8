"""Evaluates a model on held-out corpora and simulated pairs, or cross-validates a training configuration.

python eval.py --data_dir data --corpora ravdess meld emodb goemotions --pairs ravdess+meld --timelines ravdess
python eval.py --model me/my-model --data_dir data --corpora ravdess --conditions audio --limit 100
python eval.py --folds configs/ravdess_folds.yaml --data_dir data
"""

import sys


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--folds"]:  # trains one model per fold
        from modeling_mmemo.training.folds import main as cross_validate

        cross_validate(argv[1:])
    else:
        from modeling_mmemo.evaluation.evaluate_command import main as evaluate

        evaluate(argv, description=__doc__)


if __name__ == "__main__":
    main()
