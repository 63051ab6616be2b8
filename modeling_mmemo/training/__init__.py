"""Training with the `transformers` Trainer."""
