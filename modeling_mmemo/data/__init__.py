"""Corpora as `datasets` with one schema, shared labels and splits without leaks; augmentation of audio."""
