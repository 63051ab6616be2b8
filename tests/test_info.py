"""`mmemo info` on the embedded model and on a folder."""

import pytest

from mmemo.info import describe


def test_the_embedded_model():
    described = describe()

    assert "angry, disgust, fear, happy, neutral, sad, surprise" in described
    assert "int8 (dynamic)" in described and "77.4 MB in model.safetensors" in described


def test_an_exported_folder(exported):
    described = describe(str(exported))

    assert "model.onnx" in described and "coverage" not in described


def test_a_model_with_a_video_encoder(video_model):
    lines = describe(str(video_model)).splitlines()

    (video,) = (line for line in lines if line.startswith("video "))
    assert video.split(maxsplit=1)[1] == "mmemo_video, num_hidden_layers 2, hidden_size 16"


def test_a_folder_without_a_model_raises(tmp_path):
    with pytest.raises(ValueError, match="is not an mmemo model; its model_type is None"):
        describe(str(tmp_path))
