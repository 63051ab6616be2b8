"""Trains an mmemo model.

accelerate launch train.py configs/default.yaml --data_dir data
python train.py configs/default.yaml --num_train_epochs 1 --output_dir runs/short
"""

import sys


def main(argv: list[str] | None = None) -> None:
    from transformers import set_seed

    from modeling_mmemo.training.arguments import parse_arguments
    from modeling_mmemo.training.run import build_datasets, build_model, build_trainer, save

    model_args, data_args, training_args = parse_arguments(sys.argv[1:] if argv is None else argv)
    set_seed(training_args.seed)

    model, processor = build_model(model_args)
    train, dev = build_datasets(data_args, model, processor)
    trainer = build_trainer(model, train, dev, training_args)
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_metrics("eval", trainer.evaluate())
    if trainer.is_world_process_zero():
        save(model, processor, training_args.output_dir)


if __name__ == "__main__":
    main()
