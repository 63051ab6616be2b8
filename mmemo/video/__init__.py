"""Video: its frames, and the face in them."""
