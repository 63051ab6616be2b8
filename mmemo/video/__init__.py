"""Frames of a video, and the face in them."""
