"""Training with the `transformers` Trainer: options, rows, LoRA, calibration, cross-validation."""
