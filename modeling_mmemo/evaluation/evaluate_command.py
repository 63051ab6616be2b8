"""The command line of `eval.py` and `mmemo evaluate`."""

import argparse

from transformers import HfArgumentParser

from modeling_mmemo.evaluation.card import update_card
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.evaluation_run import evaluate
from modeling_mmemo.evaluation.report import summary, timelines_table, write_results
from modeling_mmemo.pipelines import load_pipeline


def main(argv: list[str], description: str | None = None) -> None:
    """
    Evaluates a model, writes the results and prints a summary.

    Args:
        argv (`list[str]`): Flags of [`EvaluationArguments`].
        description (`str`, *optional*): Description of the command, for `--help`.
    """
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
