"""Pipeline and [`EmotionPredictor`] share one path: over one graph, the same predictions or the same errors."""

import tracemalloc

import datasets
import numpy as np
import pytest
import soundfile
import tiny
from video_model import write_portrait

from mmemo import EmotionPredictor, items, recognition
from mmemo.answers import AnswerFormatter
from mmemo.audio.loading import AudioBlocks
from mmemo.recognition import EmotionRecognition
from mmemo.timeline.windows import TimelineOptions
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, feature_extraction_mmemo, load_pipeline
from modeling_mmemo.exporters import export_onnx, save_analysis


RATE = 16_000
SRT = "1\n00:00:00,200 --> 00:00:00,800\nI am\n\n2\n00:00:01,000 --> 00:00:01,500\nso happy!\n"
WORDS = [("so", 0.2, 0.5), ("sad", 0.6, 0.9)]
CLIP, STEREO, NOISE, TONE, SPEECH = "clip", "stereo", "noise", "tone", "speech"
SPLIT = {"return_timeline": True, "channels": "split"}


@pytest.fixture(scope="module")
def pipe(exported):
    """The pipeline over the dynamic int8 graph."""
    return load_pipeline(exported, "onnx")


@pytest.fixture(scope="module")
def predictor(exported):
    """The predictor over the same graph."""
    return EmotionPredictor(exported)


@pytest.fixture(scope="module")
def speech(example_audio):
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return samples


@pytest.fixture(scope="module")
def audio(make_clip, speech):
    """Samples by name: parameters of tests cannot use fixtures."""
    return {
        CLIP: make_clip(1.2, 1),
        STEREO: np.stack([speech, speech[::-1]]),
        NOISE: np.random.default_rng(0).normal(scale=0.1, size=24_000).astype(np.float32),
        TONE: make_clip(1.2, 1, 8_000),
        SPEECH: speech,
    }


class Recognition(EmotionRecognition):
    """Predicts from the shares of audio and text alone; records the items that it is given."""

    window_batch_size = 8

    def __init__(self, processor, modalities):
        self.processor = processor
        self.answers = AnswerFormatter(["angry", "sad"], None, None, modalities)
        self.prepared = []

    def run(self, items):
        self.prepared += items
        weights = np.array([[item.audio is not None, item.text is not None] for item in items], np.float32)
        segments = max(len(item.segment_times or ()) for item in items)
        repeated = np.repeat(weights[:, None], segments, axis=1)
        return {
            "logits": weights,
            "modality_weights": weights,
            "segment_logits": repeated,
            "segment_modality_weights": repeated,
        }


def transcribe(samples, sampling_rate):
    return WORDS


def outcome(function, *args, **kwargs):
    """Returns the result of a call, or the type and message of its error."""
    try:
        return function(*args, **kwargs)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def fill_in(value, audio):
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
    item = {key: fill_in(value, audio) for key, value in item.items()}

    assert outcome(predictor, **item, **options) == outcome(pipe, item, **options)


@pytest.mark.parametrize("value", [CLIP, {"array": CLIP, "sampling_rate": 16_000}, "missing.wav", None, 3])
def test_bare_audio_equals_an_item_with_audio(pipe, predictor, audio, value):
    value = fill_in(value, audio)

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


def test_the_representation_of_a_pipeline_over_a_graph_names_its_model(pipe):
    assert "MMEmoOnnxModel" in repr(pipe)


def test_a_text_model_raises_for_audio(processor, audio):
    recognition = Recognition(processor, ["text"])

    assert recognition.predict_item(recognition.prepare({"text": "so sad"}))[0]["label"] == "sad"
    for predict in (recognition.prepare, recognition.predict_timeline):
        with pytest.raises(ValueError, match="this model has no audio encoder; leave 'audio' out"):
            predict({"audio": audio[CLIP], "text": SRT})
    found = recognition.predict_timeline({"text": SRT})
    assert [entry["words"] for entry in found["timeline"]] == [["I"], ["am"], ["so", "happy!"]]


def test_an_audio_model_raises_for_text_and_words(processor, audio):
    recognition = Recognition(processor, ["audio"])

    assert recognition.predict_item(recognition.prepare(audio[CLIP]))[0]["label"] == "angry"
    for predict in (recognition.prepare, recognition.predict_timeline):
        with pytest.raises(ValueError, match="this model has no text encoder; leave 'text' out"):
            predict({"audio": audio[CLIP], "text": "so sad"})
    with pytest.raises(ValueError, match="this model has no text encoder; leave 'word_times' out"):
        recognition.prepare({"audio": audio[CLIP], "word_times": WORDS})
    with pytest.raises(ValueError, match="This model has no text encoder, so a timeline needs audio"):
        recognition.predict_timeline({"word_times": WORDS})


def test_words_of_an_audio_model_define_spans_without_being_encoded(processor, audio):
    recognition = Recognition(processor, ["audio"])

    found = recognition.predict_timeline(
        {"audio": audio[CLIP], "word_times": WORDS}, granularity="word", voice_activity=False
    )

    assert [entry["words"] for entry in found["timeline"]] == [["so"], ["sad"]]
    assert recognition.prepared and all(item.text is None for item in recognition.prepared)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_pipeline_and_predictor_agree_on_models_of_one_modality(modality, tokenizer, audio, tmp_path):
    model = tiny.make_model(*(("mmemo_audio", None) if modality == "audio" else (None, "bert")))
    parts = (MMEmoFeatureExtractor(n_mels=8), None) if modality == "audio" else (None, tokenizer)
    processor = MMEmoProcessor(*parts)
    export_onnx(model, processor, tmp_path)
    if modality == "audio":
        save_analysis(processor, tmp_path)
    pipe, predictor = load_pipeline(tmp_path, "onnx"), EmotionPredictor(tmp_path)
    items = [
        {"audio": audio[SPEECH]},
        {"text": "so happy"},
        {"audio": audio[SPEECH], "text": "so happy"},
        {"audio": audio[SPEECH], "word_times": WORDS},
        {"word_times": WORDS},
    ]
    # Of these items, those that are accepted as a whole and as a timeline.
    accepted = {"audio": ([0], [0, 3]), "text": ([1, 4], [4])}[modality]

    for options, indices in zip(({}, {"return_timeline": True}), accepted):
        found = [outcome(predictor, **item, **options) for item in items]
        assert found == [outcome(pipe, item, **options) for item in items]
        assert [index for index, result in enumerate(found) if not isinstance(result, tuple)] == indices


@pytest.fixture(params=["pipe", "predictor"])
def int8(request):
    """Both ways to run the dynamic int8 graph."""
    return request.getfixturevalue(request.param)


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


def test_float_models_batch_windows(exported, emotion):
    assert EmotionPredictor(exported, file_name="model.onnx").window_batch_size == 8
    assert emotion.window_batch_size == 8


@pytest.mark.parametrize("kwargs", [{}, {"return_timeline": True, "voice_activity": False}])
def test_items_are_loaded_and_aligned_once(emotion, make_clip, monkeypatch, kwargs):
    calls = []

    def counted(name, function):
        return lambda *args, **options: calls.append(name) or function(*args, **options)

    monkeypatch.setattr(items, "load_audio", counted("load", items.load_audio))
    monkeypatch.setattr(items, "locate_words", counted("locate", items.locate_words))
    monkeypatch.setattr(feature_extraction_mmemo, "load_audio", None)

    emotion({"audio": make_clip(1.0), "text": "so sad", "word_times": [("so", 0.1, 0.4), ("sad", 0.5, 0.9)]}, **kwargs)

    assert sorted(calls) == ["load", "locate"]


@pytest.fixture(scope="module")
def speech_models(exported):
    """Pipeline and predictor over one graph, both with speech detection."""
    pipe, predictor = load_pipeline(exported, "onnx"), EmotionPredictor(exported)
    for model in (pipe, predictor):
        model.processor.speech_padding_s = 0.4
    return pipe, predictor


def test_silence_around_a_clip_does_not_change_its_prediction(speech_models, speech):
    rng = np.random.default_rng(0)
    hold = rng.uniform(-1e-4, 1e-4, 10 * RATE).astype(np.float32)
    pipe, predictor = speech_models
    for silence in (np.zeros(10 * RATE, np.float32), hold):
        for padded in ([silence, speech], [speech, silence]):
            padded = np.concatenate(padded)
            assert pipe(padded, threshold=0.01)["label"] == pipe(speech, threshold=0.01)["label"]
            assert predictor(padded) == pipe(padded)
    assert pipe(np.concatenate([np.zeros(10 * RATE, np.float32), speech])) == pipe(speech)


def test_audio_without_speech_is_uncertain_and_missing_next_to_a_text(speech_models, audio, caplog):
    for model in speech_models:
        prepared = model.prepare({"audio": audio[NOISE], "text": "so sad"})
        assert prepared.audio is None and prepared.has_speech
        assert model(audio[NOISE], threshold=0.01)["label"] == "uncertain"
        assert len(model(audio[NOISE])) == 4
    assert "audio: no speech was detected." in caplog.text
    assert "audio: no speech was detected, so the text alone is predicted." in caplog.text


@pytest.mark.parametrize("seconds_of_silence", [0.5, pytest.param(700.0, marks=pytest.mark.slow)])
def test_long_recordings_are_predicted_window_by_window(speech_models, speech, caplog, seconds_of_silence):
    pause = np.zeros(round(seconds_of_silence * RATE), np.float32)
    repeats = 12 if seconds_of_silence < 1 else 1
    long = np.concatenate([*([speech, pause] * repeats), speech])
    pipe, predictor = speech_models

    prepared = pipe.prepare(long)
    assert prepared.recording is not None and prepared.audio is None
    scores = pipe(long)
    assert scores == predictor(long)
    timeline = pipe(long, return_timeline=True)
    assert [entry["label"] for entry in scores] == [entry["label"] for entry in timeline["scores"]]
    np.testing.assert_allclose(
        [entry["score"] for entry in scores], [entry["score"] for entry in timeline["scores"]], atol=1e-6
    )
    assert "Its prediction is the mean over its speech, in windows of 3.5 s" in caplog.text
    weights = pipe({"audio": long, "text": "so sad"}, return_modality_weights=True)["modality_weights"]
    assert weights["audio"] > 0 and weights["text"] > 0


def test_long_recordings_keep_their_place_in_a_batch(speech_models, speech):
    pipe, _ = speech_models
    long = np.tile(speech, 14)
    alone = [pipe(clip) for clip in (speech, long)]
    assert pipe([long, speech, {"text": "so sad"}, long], batch_size=4)[:2] == alone[::-1]
    assert list(pipe(iter([speech, long]), batch_size=2)) == alone


def test_a_long_recording_without_speech_is_uncertain_or_raises(speech_models, monkeypatch):
    noise = np.random.default_rng(0).normal(scale=0.1, size=31 * RATE).astype(np.float32)
    for model in speech_models:
        assert model(noise, threshold=0.01)["label"] == "uncertain"
        monkeypatch.setattr("mmemo.recognition.MAX_LOADED_SECONDS", 30.0)
        with pytest.raises(ValueError, match=r"audio: no speech was detected in 31.0 s; there is no prediction"):
            model(noise)
        monkeypatch.undo()


def test_a_long_turn_with_context_is_predicted_as_a_whole(speech_models, speech, monkeypatch):
    pipe, _ = speech_models
    monkeypatch.setattr(pipe.processor, "context_turns", 2)
    prepared = pipe.prepare({"audio": np.tile(speech, 8), "text": "so sad", "context": ["so happy"]})
    assert prepared.recording is None and prepared.context == ((None, "so happy"),)


def test_the_text_of_a_long_recording_without_speech_is_predicted_alone(speech_models, monkeypatch, caplog):
    monkeypatch.setattr(recognition, "MAX_LOADED_SECONDS", 2.0)
    noise = np.random.default_rng(0).normal(scale=0.1, size=3 * RATE).astype(np.float32)
    for model in speech_models:
        item = model.as_item({"audio": noise, "text": "so sad"})
        prepared = model.prepare(item)
        assert prepared.recording is not None
        assert model.predict_item(prepared) == model.predict_item(model.prepare({"text": "so sad"}))
    assert caplog.text.count("no speech was detected in 3.0 s, so the text alone is predicted") == 2


def test_an_open_recording_is_predicted_as_its_samples_and_knows_its_length(speech_models, speech):
    for seconds, options in ((2, {}), (20, {}), (20, {"return_timeline": True})):
        samples = np.resize(speech, seconds * RATE)
        for model in speech_models:
            opened = AudioBlocks(samples)
            found = model({"audio": opened}, **options) if model is speech_models[0] else model(opened, **options)

            assert found == model(samples, **options)
            assert opened.decoded_duration == seconds


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(speech_models, speech, tmp_path):
    with soundfile.SoundFile(tmp_path / "call.wav", "w", RATE, 2) as file:
        for _ in range(400):
            file.write(np.stack([speech, speech / 2], axis=1))
    peaks = []
    pipe, _ = speech_models
    original = pipe.run
    pipe.run = lambda items: {
        "segment_logits": np.zeros((len(items), max(len(item.segment_times) for item in items), 4), np.float32),
        "segment_modality_weights": np.ones((len(items), max(len(item.segment_times) for item in items), 2)),
    }
    try:
        tracemalloc.start()
        pipe(str(tmp_path / "call.wav"))
        peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
        pipe.run = original
    # The decoded recording alone has 150 MB.
    assert peaks[0] < 80e6


def test_errors_of_single_items_can_be_returned(pipe, audio):
    items = [audio[CLIP], "no_such.wav", {"text": "so sad"}, {"text": " "}]
    for batch_size in (1, 3):
        first, missing, text, blank = pipe(items, on_error="return", batch_size=batch_size)
        assert first == pipe(audio[CLIP]) and text == pipe({"text": "so sad"})
        assert missing.keys() == blank.keys() == {"error"}
        assert missing["error"].startswith("Item 1: audio: Cannot read no_such.wav")
        assert blank["error"].startswith("Item 3: audio and text are both missing")
    assert list(pipe(iter(items[:2]), on_error="return")) == [first, missing]
    assert pipe("no_such.wav", on_error="return")["error"].startswith("audio: Cannot read")
    found = pipe(items[:2], on_error="return", return_timeline=True, voice_activity=False)
    assert found[0]["spans"] and found[1] == missing
    with pytest.raises(ValueError, match="Item 1: audio: Cannot read"):
        pipe(items)
    with pytest.raises(ValueError, match=r"on_error='skip' is unknown; choose one of \('raise', 'return'\)"):
        pipe(items, on_error="skip")


def test_different_voices_are_not_mixed_without_a_warning(pipe, predictor, audio, caplog):
    for model in (pipe, predictor):
        for options in ({}, {"return_timeline": True, "voice_activity": False}):
            caplog.clear()
            model(audio[STEREO], **options)
            assert "The 2 channels contain different sounds, and their mean is predicted." in caplog.text
            caplog.clear()
            model(audio[STEREO], channel=1, **options)
            assert "different sounds" not in caplog.text


@pytest.mark.parametrize("text", ["😀 🎉", "[UNK]", "жду"])
def test_a_text_of_unknown_tokens_counts_as_missing(pipe, predictor, audio, caplog, text):
    for predict in (pipe, lambda item, **options: predictor(**item, **options)):
        caplog.clear()
        assert predict({"audio": audio[CLIP], "text": text}) == predict({"audio": audio[CLIP]})
        assert f"the tokenizer knows no token of {text!r}, so it counts as missing" in caplog.text
        with pytest.raises(ValueError, match="both missing"):
            predict({"text": text})


def test_a_text_of_mostly_unknown_tokens_is_encoded_with_a_warning(predictor, caplog):
    assert predictor(text="ah ja so", return_modality_weights=True)["modality_weights"]["text"] == 1
    assert "the tokenizer does not know 4 of 6 characters of 'ah ja so'" in caplog.text


def test_errors_of_workers_are_the_errors_of_their_items(pipe, audio):
    with pytest.raises(ValueError, match=r"^Item 1: audio: Cannot read no_such.wav"):
        list(pipe([audio[CLIP], "no_such.wav"], num_workers=1))


def test_a_video_with_a_silent_track_is_predicted_from_its_face(video_model, tmp_path, caplog):
    path = write_portrait(tmp_path / "mute.mp4", samples=np.zeros(RATE, np.float32))

    answer = EmotionPredictor(video_model)(video=path, return_modality_weights=True)

    assert answer["scores"][0]["label"] == "happy"
    assert answer["modality_weights"] == {"audio": 0, "text": 0, "video": 1}
    assert caplog.messages == ["audio: it is silent, so it counts as missing."]
    with pytest.raises(ValueError, match="is silent: its peak is"):
        EmotionPredictor(video_model)(str(path))


def long_recording(speech):
    """A recording with more speech than one input takes."""
    return np.tile(speech, int(12 * RATE / len(speech)) + 1)


def test_vectors_are_the_outputs_of_the_model(emotion, example_audio):
    vectors = emotion.embed({"audio": str(example_audio), "text": "I am so sad."})
    prepared = emotion.prepare({"audio": str(example_audio), "text": "I am so sad."})
    outputs = emotion.model(**emotion.collate([prepared]))

    assert list(vectors) == ["audio", "text", "fused"]
    for name, vector in vectors.items():
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, outputs[f"{name}_embeds"][0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(emotion.embed({"text": "I am so sad."})["text"], vectors["text"], atol=1e-5)
    assert list(emotion.embed(str(example_audio))) == ["audio"]


def test_vectors_of_many_items_stream_in_order(emotion, example_audio, speech):
    items = [{"text": "I am sad."}, {"audio": speech, "text": "so"}, {"text": " "}, {"audio": long_recording(speech)}]
    first, second, invalid, last = emotion.embed(items, batch_size=3, on_error="return")

    assert list(first) == ["text"] and list(second) == ["audio", "text", "fused"] and list(last) == ["audio"]
    assert invalid["error"].startswith("Item 2: audio and text are both missing")
    np.testing.assert_allclose(second["audio"], emotion.embed(items[1])["audio"], atol=1e-5)
    assert [*next(iter(emotion.embed(datasets.Dataset.from_list(items[:1]))))] == ["text"]
    stream = emotion.embed(item for item in items)
    assert list(next(stream)) == ["text"] and list(next(stream)) == ["audio", "text", "fused"]
    with pytest.raises(ValueError, match="Item 2: audio and text are both missing"):
        next(stream)


def test_vectors_of_a_recording_are_means_over_its_speech(emotion, speech):
    # Of three equal windows, the mean is the vector of one; their segments are all speech.
    emotion.processor.max_speech_s = 3.0
    window = np.tile(speech, 4)[: round(3.5 * RATE)]
    recording = np.tile(window, 3)
    emotion.mean_options = lambda has_speech=True: TimelineOptions(window_hop_s=3.5, voice_activity=False)
    whole = emotion.embed({"audio": window[: 3 * RATE]})["audio"]
    mean = emotion.embed({"audio": recording, "text": "sad"})

    alone = emotion.run([emotion.processor.prepare(audio=window, text="sad")])
    assert list(mean) == ["audio", "text", "fused"]
    for name, vector in mean.items():
        np.testing.assert_allclose(vector, alone[f"{name}_embeds"][0], atol=1e-5)
    assert np.abs(mean["audio"] - whole).max() > 1e-4


@pytest.mark.parametrize("part", ["audio", "text", "both", "recording"])
def test_vectors_of_pipeline_and_predictor_are_equal(pipe, predictor, speech, part):
    item = {
        "audio": {"audio": speech},
        "text": {"text": "not happy"},
        "both": {"audio": speech, "text": "not happy"},
        "recording": {"audio": long_recording(speech)},
    }[part]
    of_pipeline, of_predictor = pipe.embed(item), predictor.embed(item)

    assert of_pipeline.keys() == of_predictor.keys()
    for name, vector in of_pipeline.items():
        np.testing.assert_array_equal(vector, of_predictor[name])


def test_vectors_of_a_float_graph_are_those_of_torch(exported, emotion, speech):
    item = {"audio": speech, "text": "not happy"}
    vectors = EmotionPredictor(exported, file_name="model.onnx").embed([item], batch_size=2)[0]

    for name, vector in emotion.embed(item).items():
        np.testing.assert_allclose(vectors[name], vector, atol=1e-4)


def test_a_graph_of_an_earlier_version_has_no_vectors(predictor, monkeypatch):
    run = predictor.graph.run
    monkeypatch.setattr(
        predictor.graph,
        "run",
        lambda feed: {name: values for name, values in run(feed).items() if not name.endswith("_embeds")},
    )

    with pytest.raises(ValueError, match=r"\['text_embeds'\]: an earlier version exported it. Export the model again"):
        predictor.embed([{"text": "sad"}])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size=0 must be"), ({"on_error": "skip"}, "on_error='skip' is unknown")],
)
def test_invalid_options_of_embed(predictor, options, message):
    with pytest.raises(ValueError, match=message):
        predictor.embed([{"text": "sad"}], **options)
