"""The Space of `examples/space`, served on loopback and asked as its page asks."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from mmemo import EmotionPredictor


SPACE = Path(__file__).parents[1] / "examples" / "space"


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("gradio", minversion="6", reason="the Space needs gradio, which nothing else does")
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    yield app.demo
    app.demo.close()


def test_it_answers_over_http(demo, example_audio):
    from gradio_client import Client, handle_file

    _, address, _ = demo.launch(prevent_thread_lock=True, server_name="127.0.0.1", quiet=True)
    client = Client(address, verbose=False)

    scores, weights = client.predict(handle_file(example_audio), "I hate you!", api_name="/answer")

    expected = EmotionPredictor()(example_audio, "I hate you!", return_modality_weights=True)
    assert scores["label"] == expected["scores"][0]["label"]
    assert scores["confidences"][0]["confidence"] == pytest.approx(expected["scores"][0]["score"], abs=1e-3)
    assert {entry["label"] for entry in weights["confidences"]} == {"audio", "text"}


def test_what_it_cannot_answer_is_a_sentence(demo):
    import gradio

    with pytest.raises(gradio.Error, match="audio and text are both missing"):
        demo.fn(None, " ")


def test_its_front_matter_is_what_the_hub_reads():
    front = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", (SPACE / "README.md").read_text(), re.DOTALL)[1])

    assert front["sdk"] == "gradio" and (SPACE / front["app_file"]).is_file()
    assert len(front["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text().split() == ["mmemo", "onnxruntime>=1.23"]
