"""Trains an mmemo model; docs/training.md describes the options.

accelerate launch train.py configs/default_text.yaml --data_dir data
python train.py --model_name_or_path modeling_mmemo/default --corpora calls.csv --dev_share 0.1 --output_dir runs/calls
"""

import sys
from collections.abc import Callable


def prepare(argv: list[str]) -> Callable[[], None]:
    """Parses the flags, and returns a function that trains."""
    from transformers import set_seed

    from modeling_mmemo.training.training_arguments import parse_arguments
    from modeling_mmemo.training.training_run import train

    arguments = parse_arguments(argv)

    def run() -> None:
        set_seed(arguments[-1].seed)
        train(arguments)

    return run


def main(argv: list[str] | None = None) -> None:
    prepare(sys.argv[1:] if argv is None else argv)()


if __name__ == "__main__":
    from modeling_mmemo.evaluation.script import run_script

    run_script(prepare, sys.argv[1:])
