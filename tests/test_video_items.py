"""Videos as items: from a file, frames or a picture to predictions and timelines."""

import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, Video
from faces import place, read_portrait
from PIL import Image
from tiny import spread, video_config
from transformers import AutoProcessor, BertConfig
from videos import write_video

from modeling_mmemo import (
    MMEmoAudioConfig,
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MMEmoVideoConfig,
    MultimodalEmotionPipeline,
)


RATE = 16_000
SECONDS = 3


@pytest.fixture(scope="module")
def portrait():
    return read_portrait()[:256, 96:352]


@pytest.fixture(scope="module")
def frames(portrait):
    """Ten frames per second of a face that moves."""
    return np.stack([place((256, 320), (portrait, 2 * index, 0)) for index in range(10 * SECONDS)])


@pytest.fixture(scope="module")
def speech(example_audio):
    """Half a second of silence, then speech."""
    samples, _ = soundfile.read(example_audio, dtype="float32")
    return np.concatenate([np.zeros(RATE // 2, np.float32), samples])[: SECONDS * RATE]


@pytest.fixture(scope="module")
def clip(tmp_path_factory, frames, speech):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, frames, 10, speech)
    return path


@pytest.fixture(scope="module")
def silent_clip(tmp_path_factory, frames):
    path = tmp_path_factory.mktemp("videos") / "silent.mp4"
    write_video(path, frames, 10)
    return path


def make_pipeline(tokenizer, video, **processor):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    audio = MMEmoAudioConfig(
        num_mel_bins=16, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32
    )
    text = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)
    config = MMEmoConfig(
        audio_config=audio, text_config=text, video_config=video, fusion_hidden_size=16, num_attention_heads=2
    )
    model = spread(MMEmoForEmotionRecognition(config))
    return MultimodalEmotionPipeline(model, MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), tokenizer, **processor))


@pytest.fixture(scope="module")
def emotion(session_tokenizer):
    return make_pipeline(session_tokenizer, MMEmoVideoConfig(hidden_size=16), frames_per_second=5)


def weights_of(answer):
    return {name for name, weight in answer["modality_weights"].items() if weight}


def predict(emotion, inputs, **options):
    return emotion(inputs, return_modality_weights=True, **options)


@pytest.mark.slow
def test_one_file_gives_frames_and_sound_in_every_form(emotion, clip):
    expected = predict(emotion, {"video": str(clip)})
    assert weights_of(expected) == {"audio", "video"}
    content = clip.read_bytes()
    for inputs in (
        str(clip),
        clip,
        content,
        io.BytesIO(content),
        {"video": content},
        {"video": io.BytesIO(content)},
        {"video": {"path": str(clip), "bytes": None}},
        {"video": str(clip), "audio": str(clip)},
        bytearray(content),
        memoryview(content),
        {"path": str(clip), "bytes": None},
        {"video": str(clip), "fps": float("nan")},  # of a table with a column of fps
    ):
        assert predict(emotion, inputs) == expected


def test_sound_and_picture_may_be_left_out_or_come_from_elsewhere(emotion, clip, silent_clip, speech):
    assert weights_of(predict(emotion, {"video": clip, "audio": None})) == {"video"}
    assert weights_of(predict(emotion, silent_clip)) == {"video"}
    assert weights_of(predict(emotion, {"audio": clip})) == {"audio"}
    assert weights_of(predict(emotion, {"video": silent_clip, "audio": speech})) == {"audio", "video"}
    assert weights_of(predict(emotion, {"video": silent_clip, "text": "so happy"})) == {"text", "video"}


def test_frames_and_pictures(emotion, frames, portrait, tmp_path):
    expected = predict(emotion, {"video": frames, "fps": 10})
    assert weights_of(expected) == {"video"}
    images = [Image.fromarray(frame) for frame in frames]
    assert predict(emotion, {"video": images, "fps": 10}) == expected
    assert predict(emotion, {"video": {"frames": frames, "fps": 10}}) == expected
    Image.fromarray(portrait).save(tmp_path / "face.png")
    picture = predict(emotion, {"video": portrait})
    assert weights_of(picture) == {"video"}
    for same in (Image.fromarray(portrait), tmp_path / "face.png", str(tmp_path / "face.png")):
        assert predict(emotion, {"video": same}) == picture
    for bare in (tmp_path / "face.png", portrait, Image.fromarray(portrait)):
        assert predict(emotion, bare) == picture


def test_items_have_the_same_prediction_in_a_batch(emotion, clip, silent_clip, portrait, speech):
    items = [clip, {"text": "so happy"}, {"video": portrait, "text": "sad"}, {"audio": speech}, silent_clip]
    for one, many in zip(map(emotion, items), emotion(items, batch_size=5)):
        for expected, answer in zip(one, many):
            assert answer["label"] == expected["label"]
            assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)


def test_a_column_of_datasets(emotion, clip):
    data = Dataset.from_dict({"video": [str(clip)]}).cast_column("video", Video())
    assert list(emotion(data)) == [emotion(clip)]


def test_a_video_without_a_face_counts_as_missing(emotion, speech, frames, caplog):
    blank = np.zeros_like(frames)
    assert weights_of(predict(emotion, {"video": blank, "fps": 10, "audio": speech})) == {"audio"}
    assert "No face found" in caplog.text
    with pytest.raises(ValueError, match="video: no face was found, and there is neither audio nor text"):
        emotion({"video": blank, "fps": 10})


@pytest.mark.parametrize(
    "inputs, options, message",
    [
        ({"video": "clip"}, {"face": 1}, "video: face=1 is not in the video; faces found: 1"),
        ({"text": "so happy"}, {"face": 0}, "face=0 is about a video, and the item has none"),
        ({"video": "clip", "fps": 5}, {}, "video: fps=5 does not apply"),
        ({"video": "speech"}, {}, "video: .* has no video track"),
        ({"video": "missing.mp4"}, {}, "video: .*missing.mp4"),
        ({"text": "so happy", "fps": 5}, {}, "fps=5 is about a video"),
        ({"video": "clip"}, {"return_timeline": True, "channels": "split", "everyone": True}, "shows one face"),
    ],
)
def test_invalid_videos_raise(emotion, clip, example_audio, inputs, options, message):
    files = {"clip": str(clip), "speech": str(example_audio)}
    with pytest.raises(ValueError, match=message):
        emotion({name: files.get(value, value) for name, value in inputs.items()}, **options)


def test_a_model_without_a_video_encoder_takes_the_sound(session_model, processor, clip):
    emotion = MultimodalEmotionPipeline(session_model, processor)
    assert emotion(clip) == emotion({"audio": clip})
    with pytest.raises(ValueError, match="this model has no video encoder; leave 'video' out"):
        emotion({"video": clip})


def test_a_model_of_video_alone(silent_clip):
    torch.manual_seed(0)
    config = MMEmoConfig(video_config=MMEmoVideoConfig(hidden_size=16), fusion_hidden_size=16)
    emotion = MultimodalEmotionPipeline(MMEmoForEmotionRecognition(config), MMEmoProcessor(frames_per_second=5))
    assert weights_of(predict(emotion, silent_clip)) == {"video"}
    with pytest.raises(ValueError, match=r"video: Cannot read missing\.mp4"):
        emotion("missing.mp4")
    # Words define the spans.
    words = [("so", 0.2, 0.5), ("happy", 1.0, 1.4)]
    timeline = emotion({"video": silent_clip, "word_times": words}, granularity="word")["timeline"]
    assert [row["words"] for row in timeline] == [["so"], ["happy"]]
    assert all(weights_of(row) == {"video"} for row in timeline)


def test_the_times_of_frames_move_with_the_speech(emotion, clip):
    prepared = emotion.prepare(clip)
    whole = emotion.processor.load_video(clip)
    assert len(prepared.audio) < SECONDS * RATE - RATE // 4
    starts = prepared.video.times[:, 0]
    assert (np.diff(starts) >= 0).all()
    # Half a second of silence was cut, but for the padding.
    assert starts[10] == pytest.approx(whole.times[10, 0] - 0.5 + 0.1, abs=0.15)
    assert np.array_equal(prepared.video.blendshapes, whole.blendshapes)


def test_a_timeline_has_a_row_for_the_face(emotion, clip, frames, tmp_path):
    gone = frames.copy()
    gone[20:] = 110
    write_video(tmp_path / "gone.mp4", gone, 10)
    timeline = emotion({"video": tmp_path / "gone.mp4"}, return_timeline=True)
    assert timeline["duration"] == pytest.approx(SECONDS, abs=0.1)
    rows = timeline["timeline"]
    assert [row["face"]["presence"] for row in rows] == [1, 1, 1, 1, 0, 0]
    assert all(len(row["face"]["blendshapes"]) == (3 if index < 4 else 0) for index, row in enumerate(rows))
    names = {shape["name"] for row in rows for shape in row["face"]["blendshapes"]}
    assert "_neutral" not in names
    assert [weights_of(row) for row in rows[:4]] == [{"video"}] * 4
    both = emotion(clip, return_timeline=True)
    spoken = [row for row in both["timeline"] if row["label"] != "silence"]
    assert spoken
    assert all(weights_of(row) == {"audio", "video"} for row in spoken)
    assert all(row["face"]["presence"] == 1 for row in both["timeline"])
    assert set(emotion({"audio": clip}, return_timeline=True)["timeline"][0]) == set(spoken[0]) - {"face"}


@pytest.mark.parametrize("level", [0.0, 0.05])
def test_a_face_is_predicted_where_nobody_speaks(emotion, frames, level, tmp_path):
    gone = frames.copy()
    gone[20:] = 110
    noise = np.random.default_rng(0).normal(scale=level, size=SECONDS * RATE).astype(np.float32)
    write_video(tmp_path / "noise.mp4", gone, 10, noise)
    rows = emotion(tmp_path / "noise.mp4", return_timeline=True, context_s=0.5)["timeline"]
    assert [weights_of(row) for row in rows[:4]] == [{"video"}] * 4
    assert [row["label"] for row in rows[4:]] == ["silence"] * 2


def test_a_timeline_goes_on_after_the_sound(emotion, frames, speech, tmp_path):
    write_video(tmp_path / "short.mp4", frames, 10, speech[: 2 * RATE])
    timeline = emotion(tmp_path / "short.mp4", return_timeline=True, context_s=0.5)
    assert timeline["duration"] == pytest.approx(SECONDS, abs=0.2)
    assert weights_of(timeline["timeline"][2]) == {"audio", "video"}
    assert "video" in weights_of(timeline["timeline"][-1])
    starts = [row["start"] for row in timeline["timeline"]]
    assert starts == pytest.approx(np.arange(len(starts)) / 2)


@pytest.mark.slow
def test_a_long_recording_is_predicted_with_its_face(emotion, frames, speech, tmp_path):
    write_video(tmp_path / "long.mp4", np.concatenate([frames] * 5), 10, np.tile(speech, 5))
    emotion.processor.max_speech_s = 5.0
    try:
        assert weights_of(predict(emotion, tmp_path / "long.mp4")) == {"audio", "video"}
    finally:
        emotion.processor.max_speech_s = 10.0


def test_a_worker_process_passes_long_recordings_on(emotion, clip):
    emotion.processor.max_speech_s = 1.0
    try:
        assert predict(emotion, [clip], num_workers=1) == [predict(emotion, clip)]
    finally:
        emotion.processor.max_speech_s = 10.0


def test_an_image_encoder_takes_pictures_of_the_face(session_tokenizer, clip, silent_clip):
    settings = {"frames_per_second": 2, "crop_size": 8, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    emotion = make_pipeline(session_tokenizer, video_config("vit"), **settings)
    assert weights_of(predict(emotion, clip)) == {"audio", "video"}
    face = emotion.processor.load_video(silent_clip)
    values = emotion.processor(video=[silent_clip, None], text=["sad", "so"], return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 2 * SECONDS, 3, 8, 8)
    expected = (face.crops[1] / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    torch.testing.assert_close(values[0, 1].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    assert not values[1].any()


def test_a_processor_of_videos_is_saved_and_loaded(session_tokenizer, silent_clip, tmp_path):
    settings = {"frames_per_second": 2, "crop_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for processor in (MMEmoProcessor(frames_per_second=5), MMEmoProcessor(tokenizer=session_tokenizer, **settings)):
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        expected, inputs = (part(video=[silent_clip], return_tensors="np") for part in (processor, loaded))
        assert expected.keys() == inputs.keys()
        assert set(inputs) <= set(loaded.model_input_names)
        assert all(np.array_equal(expected[name], inputs[name]) for name in inputs)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"frames_per_second": 0}, "frames_per_second=0 must be a positive number"),
        ({"frames_per_second": 5, "crop_size": 8}, r"\['image_mean', 'image_std'\] are missing"),
        ({"crop_size": 8, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "need frames_per_second"),
    ],
)
def test_invalid_settings_raise(tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        MMEmoProcessor(tokenizer=tokenizer, **settings)
