"""The command `mmemo`, and answers without torch; everything else is in `modeling_mmemo`."""

from mmemo.predictor import EmotionPredictor


__all__ = ["EmotionPredictor"]
