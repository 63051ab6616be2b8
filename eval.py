"""Scores a model on the held-out parts of corpora and on simulated pairs of them, or cross-validates a training run.

python eval.py --data_dir data --corpora ravdess meld emodb goemotions --pairs ravdess+meld --timelines ravdess
python eval.py --model me/my-model --data_dir data --corpora ravdess --conditions audio --limit 100
python eval.py --folds configs/ravdess_folds.yaml --data_dir data
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--folds"]:
        cross_validate(argv[1:])
    else:
        score(argv)


def score(argv: list[str]) -> None:
    from transformers import HfArgumentParser

    from modeling_mmemo.evaluation.arguments import EvaluationArguments
    from modeling_mmemo.evaluation.card import update_card
    from modeling_mmemo.evaluation.report import summary, timelines_table, write_results
    from modeling_mmemo.evaluation.run import evaluate
    from modeling_mmemo.pipelines import load_pipeline

    parser = HfArgumentParser(
        EvaluationArguments, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    (args,) = parser.parse_args_into_dataclasses(argv)
    results = evaluate(load_pipeline(args.model), args)
    write_results(results, args.output_dir)
    for card in args.cards:
        update_card(card, results)
    if args.corpora or args.pairs:
        print(summary(results))
    if args.timelines:
        print(timelines_table(results["timelines"]))


def cross_validate(argv: list[str]) -> None:
    """`argv` is a training configuration and flags of train.py; the results go to its output_dir."""
    from modeling_mmemo.evaluation.report import summary, write_results
    from modeling_mmemo.training.arguments import parse_arguments
    from modeling_mmemo.training.folds import cross_validate

    arguments = parse_arguments(argv)
    results = cross_validate(arguments, name=argv[0])
    write_results(results, arguments[-1].output_dir)
    print(summary(results))


if __name__ == "__main__":
    main()
