"""Examples of mmemo with six clips from EmoDB (CC0)."""
