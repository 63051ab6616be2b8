"""The pipeline and [`EmotionPredictor`] over one graph: the same predictions, or the same error."""

import numpy as np
import pytest
import soundfile

from mmemo import EmotionPredictor
from modeling_mmemo import load_pipeline


SRT = "1\n00:00:00,200 --> 00:00:00,800\nI am\n\n2\n00:00:01,000 --> 00:00:01,500\nso happy!\n"
WORDS = [("so", 0.2, 0.5), ("sad", 0.6, 0.9)]
CLIP, STEREO, NOISE, TONE, SPEECH = "clip", "stereo", "noise", "tone", "speech"
SPLIT = {"return_timeline": True, "channels": "split"}


@pytest.fixture(scope="module")
def pipe(exported):
    return load_pipeline(exported, "onnx")


@pytest.fixture(scope="module")
def predictor(exported):
    return EmotionPredictor(exported)


@pytest.fixture(scope="module")
def audio(make_clip, example_audio):
    """Samples by name: parameters of tests cannot use fixtures."""
    speech, _ = soundfile.read(example_audio, dtype="float32")
    return {
        CLIP: make_clip(1.2, 1),
        STEREO: np.stack([speech, speech[::-1]]),
        NOISE: np.random.default_rng(0).normal(scale=0.1, size=24_000).astype(np.float32),
        TONE: make_clip(1.2, 1, 8_000),
        SPEECH: speech,
    }


def transcribe(samples, sampling_rate):
    return WORDS


def outcome(function, *args, **kwargs):
    """Returns the result of a call, or the type and message of its error."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def load(value, audio):
    """Replaces names of audio by the samples, also in the dictionary of an audio input."""
    if isinstance(value, dict) and value.keys() & {"array", "raw"}:
        return {key: audio.get(entry, entry) if isinstance(entry, str) else entry for key, entry in value.items()}
    return audio.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    "item, options",
    [
        # Forms of items.
        ({}, {}),
        ({"audio": None, "text": None}, {}),
        ({"audio": CLIP}, {}),
        ({"audio": CLIP, "text": None, "word_times": None, "context": None, "speaker": None}, {}),
        ({"audio": {"array": CLIP, "sampling_rate": 16_000}}, {}),
        ({"audio": {"raw": TONE, "sampling_rate": 8_000}, "text": "so sad"}, {}),
        ({"audio": {"array": TONE, "sampling_rate": 8_000}, "sampling_rate": 44_100}, {}),
        ({"audio": {"array": CLIP}}, {}),
        ({"audio": {"sampling_rate": 16_000}}, {}),
        ({"audio": {"path": None, "bytes": None}}, {}),
        ({"audio": {"audio": CLIP}}, {}),
        ({"audio": "I am so sad."}, {}),
        ({"audio": "missing.wav", "text": "so sad"}, {}),
        ({"audio": b"", "text": "so sad"}, {}),
        ({"sampling_rate": 16_000}, {}),
        ({"sampling_rate": 16_000, "text": "so sad"}, {}),
        ({"audio": TONE, "sampling_rate": 8_000}, {}),
        ({"audio": TONE, "sampling_rate": 0}, {}),
        # Text and words.
        ({"text": " \t"}, {}),
        ({"text": 7}, {}),
        ({"text": 7}, {"return_timeline": True}),
        ({"text": SRT}, {}),
        ({"text": SRT}, {"return_timeline": True}),
        ({"text": WORDS, "audio": CLIP}, {}),
        ({"text": WORDS, "audio": CLIP}, {"return_timeline": True}),
        ({"text": " ", "word_times": WORDS}, {}),
        ({"text": " ", "word_times": WORDS}, {"return_timeline": True}),
        ({"word_times": SRT}, {}),
        ({"text": SRT, "word_times": WORDS}, {}),
        ({"text": SRT, "word_times": WORDS}, {"return_timeline": True}),
        ({"text": SRT, "word_times": []}, {}),
        ({"text": SRT, "word_times": []}, {"return_timeline": True}),
        ({"text": "so sad", "word_times": []}, {}),
        ({"text": "so sad", "word_times": [("happy", 0, 1)]}, {}),
        ({"text": "so sad"}, {"return_timeline": True}),
        ({"text": "so sad", "context": ["you are"]}, {}),
        ({"text": "so sad", "speaker": "ann"}, {}),
        ({"audio": CLIP, "context": ["you are"]}, {"return_timeline": True}),
        ({"audio": CLIP, "speaker": "ann"}, {"return_timeline": True}),
        ({"audio": CLIP, "context": [], "speaker": ""}, {"return_timeline": True}),
        # Channels.
        ({"audio": STEREO}, {"channel": 1}),
        ({"audio": STEREO}, {"channel": 2}),
        ({"audio": STEREO}, {"channel": 2, "return_timeline": True}),
        ({"audio": STEREO}, {"channel": -1}),
        ({"text": "so sad"}, {"channel": 3}),
        ({"audio": STEREO}, SPLIT | {"customer": 0}),
        ({"audio": STEREO}, SPLIT | {"customer": 2}),
        ({"audio": STEREO}, SPLIT | {"customer": 1, "channel": 0}),
        ({"audio": CLIP}, SPLIT | {"everyone": True}),
        # Options of predictions.
        ({"text": "so sad"}, {"top_k": 0}),
        ({"text": "so sad"}, {"top_k": 9, "return_modality_weights": True}),
        ({"text": "so sad"}, {"function_to_apply": "sigmoid"}),
        ({"text": "so sad"}, {"function_to_apply": "tanh"}),
        ({"audio": SPEECH}, {"function_to_apply": "tanh", "return_timeline": True}),
        ({"audio": SPEECH}, {"function_to_apply": "none", "threshold": 0.5, "return_timeline": True}),
        ({"text": "so sad"}, {"threshold": 1.0}),
        ({"text": "so sad"}, {"coverage": 0.9}),
        ({"audio": NOISE}, {"threshold": 0.1}),
        ({"audio": NOISE, "text": "so sad"}, {"threshold": 0.1, "return_modality_weights": True}),
        ({"audio": NOISE}, {"threshold": 0.1, "return_timeline": True}),
        ({"audio": NOISE}, {"coverage": 0.9}),
        # Options of timelines.
        ({"audio": SPEECH}, {"return_timeline": True, "transcriber": transcribe}),
        ({"audio": SPEECH}, {"return_timeline": True, "transcriber": transcribe, "granularity": "word"}),
        ({"audio": SPEECH}, {"return_timeline": True, "transcriber": 1}),
        ({"audio": SPEECH}, {"return_timeline": True, "granularity": "word"}),
        ({"audio": SPEECH}, {"return_timeline": True, "segment_s": None, "everyone": None, "hop_s": None}),
        ({"audio": SPEECH}, {"return_timeline": True, "segment_s": -1}),
        ({"audio": SPEECH}, {"return_timeline": True, "window_batch_size": 0}),
        ({"audio": SPEECH}, {"return_timeline": True, "window_batch_size": 2.0}),
        ({"audio": SPEECH}, {"return_timeline": True, "window_batch_size": 3}),
        ({"audio": SPEECH}, {"return_timeline": True, "speaker_turns": [("ann", 0.0, 1.0)], "top_k": 1}),
        ({"audio": SPEECH}, {"return_timeline": True, "customer": 0}),
    ],
)
def test_pipeline_and_predictor_agree(pipe, predictor, audio, item, options):
    item = {key: load(value, audio) for key, value in item.items()}

    assert outcome(predictor, **item, **options) == outcome(pipe, item, **options)


@pytest.mark.parametrize("value", [CLIP, {"array": CLIP, "sampling_rate": 16_000}, "missing.wav", None, 3])
def test_bare_audio_equals_an_item_with_audio(pipe, predictor, audio, value):
    value = load(value, audio)

    assert outcome(predictor, value) == outcome(pipe, value) == outcome(pipe, {"audio": value})


def test_unknown_options_raise_a_type_error(pipe, predictor):
    for options in ({"topk": 1}, {"topk": 1, "return_timeline": True}):
        for call in (lambda **given: predictor(text="so", **given), lambda **given: pipe({"text": "so"}, **given)):
            with pytest.raises(TypeError, match=r"Unknown parameters \['topk'\]; valid ones are"):
                call(**options)


def test_unknown_keys_raise(pipe, predictor):
    with pytest.raises(ValueError, match=r"unknown keys \['label'\]; an item may have \('audio', 'text'"):
        pipe({"text": "so", "label": 1})
    with pytest.raises(ValueError, match=r"unknown keys \['label'\]; an item may have \('audio', 'text'"):
        predictor.prepare({"text": "so", "label": 1})


@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": 2, "num_workers": 1}])
@pytest.mark.parametrize("is_stream", [False, True])
def test_batches_of_the_pipeline_equal_single_predictions(pipe, predictor, audio, options, is_stream):
    """To the bit, although a dynamic int8 graph measures ranges over its whole batch."""
    items = [
        {"audio": audio[CLIP], "text": "I am so sad."},
        {"text": SRT},
        {"audio": audio[SPEECH]},
        {"audio": audio[TONE], "sampling_rate": 8_000, "word_times": WORDS},
        {"text": "you are not happy, wait!"},
    ]

    found = pipe((item for item in items) if is_stream else items, **options, return_modality_weights=True)

    assert list(found) == [predictor(**item, return_modality_weights=True) for item in items]


def test_streams_of_timelines_equal_single_predictions(pipe, predictor, audio):
    clips = [audio[SPEECH], audio[CLIP]]
    found = pipe((clip for clip in clips), return_timeline=True)
    assert list(found) == [predictor(clip, return_timeline=True) for clip in clips]
