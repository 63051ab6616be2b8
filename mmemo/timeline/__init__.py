"""Timelines: windows, recordings, speaker turns, streams, calls."""
