"""Sharing of trained models on the Hub."""
