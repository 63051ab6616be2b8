"""Emotion over time: windows, recordings, speaker turns, streams, calls."""
