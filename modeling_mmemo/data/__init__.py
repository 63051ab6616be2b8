"""Corpora as `datasets`: one schema, one set of labels, splits without leaks."""
