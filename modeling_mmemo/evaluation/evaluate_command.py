"""The command line of `eval.py` and `mmemo evaluate`."""

import argparse

from transformers import HfArgumentParser

from modeling_mmemo.evaluation.card import update_card
from modeling_mmemo.evaluation.checkpoints import checkpoint_config
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.evaluation_run import evaluate
from modeling_mmemo.evaluation.report import caveats, summary, timelines_table, write_results
from modeling_mmemo.pipelines import load_pipeline


def parse_evaluation(
    argv: list[str], description: str | None = None, command: str | None = None
) -> EvaluationArguments:
    """
    Parses flags; for an unknown one, or a value of another type, it prints one sentence and exits with status 2.

    Args:
        argv (`list[str]`): Flags of [`EvaluationArguments`].
        description (`str`, *optional*): Description of the command, for `--help`.
        command (`str`, *optional*): Name of the command, for messages; defaults to the script's.

    Raises:
        ValueError: See [`EvaluationArguments`].
    """
    parser = HfArgumentParser(
        EvaluationArguments,
        prog=command,
        usage="%(prog)s [--option value ...]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    args, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments {unknown}; --help lists the options")
    return args


def evaluate_and_report(args: EvaluationArguments) -> None:
    """Evaluates a model, writes the results and prints a summary."""
    if args.model is not None:
        checkpoint_config("model", args.model)
    results = evaluate(load_pipeline(args.model), args)
    write_results(results, args.output_dir)
    for card in args.cards:
        update_card(card, results)
    if args.corpora or args.pairs:
        print(summary(results))
        for table in (*results["corpora"], *results["pairs"]):
            for caveat in caveats(table):
                print(caveat)
    if args.timelines:
        print(timelines_table(results["timelines"]))
