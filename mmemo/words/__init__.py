"""Words: timestamps, dialogue context, transcription."""
