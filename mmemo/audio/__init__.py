"""Audio: loading, mel spectrograms, voice activity detection."""
