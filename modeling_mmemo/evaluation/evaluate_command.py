"""What `eval.py` and `mmemo evaluate` do."""

import argparse

from transformers import HfArgumentParser

from modeling_mmemo.evaluation.card import update_card
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.evaluation_run import evaluate
from modeling_mmemo.evaluation.report import summary, timelines_table, write_results
from modeling_mmemo.pipelines import load_pipeline
from modeling_mmemo.training.folds import cross_validate
from modeling_mmemo.training.training_arguments import parse_arguments


def main(argv: list[str], description: str | None = None) -> None:
    """
    Scores a model, or, where the first argument is `--folds`, a training run.

    Args:
        argv (`list[str]`): Flags of [`EvaluationArguments`]; behind `--folds` a training configuration and flags of
            `train.py`, whose `output_dir` then gets the results.
        description (`str`, *optional*): Of the command, for `--help`.
    """
    if argv[:1] == ["--folds"]:
        arguments = parse_arguments(argv[1:])
        results = cross_validate(arguments, name=argv[1])
        write_results(results, arguments[-1].output_dir)
        print(summary(results))
        return
    parser = HfArgumentParser(
        EvaluationArguments, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
