"""Predictions for many files."""
