"""Audio: loading, mel analysis, voice activity."""
