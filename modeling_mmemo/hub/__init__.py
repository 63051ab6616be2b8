"""Sharing trained models on the Hub."""
