"""A Space that predicts the emotions of a recording, of a text, or of both."""

import os

from mmemo import EmotionPredictor
from mmemo.demo import serve_demo


if __name__ == "__main__":
    serve_demo(EmotionPredictor(os.environ.get("MODEL")))
