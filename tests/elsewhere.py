"""Programs that load a model and predict in another process, with or without the package."""

import pytest


# Hides this package and its other dependencies, as for a user who installed only transformers, torch, librosa and
# silero-vad.
WITHOUT_PACKAGE = """
import sys

ABSENT = {"mmemo", "modeling_mmemo", "datasets", "evaluate", "onnxruntime", "optimum", "peft"}

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
TEXT = "you are so sad"
ANSWER = f"""
import json, torch
torch.set_num_threads(1)
outputs = emotion.model(**emotion.processor(audio=[CLIP], text=[{TEXT!r}], return_tensors="pt"))
print(json.dumps({{"logits": outputs.logits.tolist(), "answer": emotion({{"audio": CLIP, "text": {TEXT!r}}}),
                  "module": type(emotion.model).__module__}}))
"""


def answer_of(emotion, clip):
    """Returns the expected output of `ANSWER`, without the module."""
    inputs = emotion.processor(audio=[str(clip)], text=[TEXT], return_tensors="pt")
    answer = emotion({"audio": str(clip), "text": TEXT})
    return {"logits": emotion.model(**inputs).logits.tolist(), "answer": answer}


def assert_same_answer(found, expected):
    """Compares outputs of two processes; kernels chosen by memory alignment may change the last bit."""
    assert found.keys() == expected.keys()
    assert found["logits"][0] == pytest.approx(expected["logits"][0], rel=1e-6)
    assert [entry["label"] for entry in found["answer"]] == [entry["label"] for entry in expected["answer"]]
    scores = [entry["score"] for entry in expected["answer"]]
    assert [entry["score"] for entry in found["answer"]] == pytest.approx(scores, rel=1e-6)
