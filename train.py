"""Trains an mmemo model; docs/training.md describes the options.

accelerate launch train.py configs/default_text.yaml --data_dir data
python train.py --model_name_or_path modeling_mmemo/default --corpora calls.csv --dev_share 0.1 --output_dir runs/calls
"""

import sys


def main(argv: list[str] | None = None) -> None:
    from transformers import set_seed

    from modeling_mmemo.training.training_arguments import parse_arguments
    from modeling_mmemo.training.training_run import train

    arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
    set_seed(arguments[-1].seed)
    train(arguments)


if __name__ == "__main__":
    main()
