import numpy as np
import pytest
import soundfile

from mmemo import EmotionPredictor, items
from mmemo.items import PreparedItem
from mmemo.recognition import without_silent_audio
from modeling_mmemo import feature_extraction_mmemo, load_pipeline


RATE = 16_000


@pytest.fixture(scope="module")
def speech(example_audio):
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return samples


@pytest.fixture(scope="module", params=["pipeline", "predictor"])
def int8(request, exported):
    """Both ways to run the dynamic int8 graph."""
    return load_pipeline(exported, "onnx") if request.param == "pipeline" else EmotionPredictor(exported)


def timeline(emotion, samples):
    return emotion.predict_timeline({"audio": samples}, voice_activity=False)["timeline"]


def test_int8_timelines_do_not_depend_on_later_audio(int8, speech):
    long = np.concatenate([speech, np.zeros(RATE, np.float32), speech, 0.3 * speech[::-1]])
    cut = long[: 7 * RATE]

    found, expected = timeline(int8, long), timeline(int8, cut)

    assert int8.window_batch_size == 1
    # The last window of a recording starts elsewhere, so segments after 6 s differ.
    for entry, other in zip(found[:6], expected[:6], strict=True):
        assert entry["scores"] == other["scores"]


def test_float_models_batch_their_windows(exported, emotion):
    assert EmotionPredictor(exported, file_name="model.onnx").window_batch_size == 8
    assert emotion.window_batch_size == 8


@pytest.mark.parametrize("kwargs", [{}, {"return_timeline": True, "voice_activity": False}])
def test_an_item_is_loaded_and_aligned_once(emotion, make_clip, monkeypatch, kwargs):
    calls = []

    def counted(name, function):
        return lambda *args, **options: calls.append(name) or function(*args, **options)

    monkeypatch.setattr(items, "load_audio", counted("load", items.load_audio))
    monkeypatch.setattr(items, "locate_words", counted("locate", items.locate_words))
    monkeypatch.setattr(feature_extraction_mmemo, "load_audio", None)

    emotion({"audio": make_clip(1.0), "text": "so sad", "word_times": [("so", 0.1, 0.4), ("sad", 0.5, 0.9)]}, **kwargs)

    assert sorted(calls) == ["load", "locate"]


def test_audio_without_speech_is_missing_beside_a_text(make_clip):
    noise = PreparedItem(audio=make_clip(1.0))
    assert not without_silent_audio(noise, RATE).has_speech
    with_text = without_silent_audio(PreparedItem(audio=make_clip(1.0), text="so sad"), RATE)
    assert with_text.has_speech and with_text.audio is None


def test_audio_with_speech_stays(speech):
    item = PreparedItem(audio=speech)
    assert without_silent_audio(item, RATE) is item
