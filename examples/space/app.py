"""A Space: which emotions are in a voice, in its words, or in both."""

import os

from mmemo import EmotionPredictor
from mmemo.demo import serve_demo


if __name__ == "__main__":
    serve_demo(EmotionPredictor(os.environ.get("MODEL")))
