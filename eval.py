"""Scores a model on the held-out parts of corpora and on simulated pairs of them, or cross-validates a training run.

python eval.py --data_dir data --corpora ravdess meld emodb goemotions --pairs ravdess+meld --timelines ravdess
python eval.py --model me/my-model --data_dir data --corpora ravdess --conditions audio --limit 100
python eval.py --folds configs/ravdess_folds.yaml --data_dir data
"""

import sys


def main(argv: list[str] | None = None) -> None:
    from modeling_mmemo.evaluation.evaluate_command import main as run

    run(sys.argv[1:] if argv is None else argv, description=__doc__)


if __name__ == "__main__":
    main()
