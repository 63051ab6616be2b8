"""Examples of mmemo with six clips of EmoDB (CC0)."""
