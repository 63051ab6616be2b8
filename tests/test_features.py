import copy
import os
import weakref

import numpy as np
import pytest
import soundfile
import torch
from faces import read_portrait
from tiny import make_model
from videos import write_video

from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
from modeling_mmemo.data.faces import FaceCache, Faces
from modeling_mmemo.data.schema import as_dataset
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import RunningStatistics, run_tower, standardize, tower_states
from modeling_mmemo.training.rows import EmotionRows


@pytest.fixture
def texts():
    return as_dataset([{"text": text} for text in ("i am happy", "you are not so sad !", "wait")])


def test_cached_states_give_the_same_logits(model, processor, texts, tmp_path):
    cached = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)
    inputs = processor(text="you are not so sad !", return_tensors="pt")

    with torch.no_grad():
        expected = model(**inputs).logits
        states = torch.from_numpy(cached[1].copy()).float().unsqueeze(1)
        logits = model(text_hidden_states=states.unbind()).logits

    assert len(cached) == 3
    torch.testing.assert_close(logits, expected, atol=5e-3, rtol=5e-3)  # cached in half precision


def test_states_are_computed_once_and_again_for_other_weights(model, processor, texts, tmp_path):
    tower = model.mmemo.text_tower
    first = tower_states("text", tower, processor, texts, tmp_path)[0]
    (folder,) = tmp_path.iterdir()
    written = (folder / "states.bin").stat().st_mtime_ns

    tower_states("text", tower, processor, texts, tmp_path)
    assert (folder / "states.bin").stat().st_mtime_ns == written

    with torch.no_grad():
        tower.embeddings.word_embeddings.weight.add_(1)
    other = tower_states("text", tower, processor, texts, tmp_path)[0]
    assert len(list(tmp_path.iterdir())) == 2
    assert (first != other).any()


@pytest.fixture
def inputs():
    """Training rows for the collator."""
    target = {"labels": 0, "label_mask": torch.ones(4, dtype=torch.long)}
    return [{**target, "text": text} for text in ("i am happy", "you are not so sad !", "wait", "so sad .")]


def pooled(model, texts, processor):
    """Returns the pooled vectors of the text branch, and its layers, `(layers, positions of all texts, hidden)`."""
    branch = model.mmemo.text_branch
    states = [model(**processor(text=text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    layers = [torch.stack(output.text_hidden_states) for output in states]
    mixed = [branch.mix(layer.unbind()) for layer in layers]
    vectors = torch.cat([branch.pooling(states, torch.ones(states.shape[:2])) for states in mixed])
    return vectors, torch.cat([layer[:, 0] for layer in layers], dim=1)


@torch.no_grad()
def test_standardized_features_have_mean_0_and_std_1(model, processor, inputs):
    audio = copy.deepcopy(model.mmemo.audio_branch.state_dict())

    standardize(model, ["audio", "text"], inputs, EmotionCollator(processor))

    branch = model.mmemo.text_branch
    vectors, positions = pooled(model, [row["text"] for row in inputs], processor)
    scaled = (positions - branch.mix.standardization.mean[:, None]) / branch.mix.standardization.std[:, None]
    torch.testing.assert_close(scaled.mean(dim=1), torch.zeros_like(scaled[:, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=1, correction=0), torch.ones_like(scaled[:, 0]), atol=1e-3, rtol=0)
    vectors = branch.standardization(vectors)
    torch.testing.assert_close(vectors.mean(dim=0), torch.zeros_like(vectors[0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(vectors.std(dim=0, correction=0), torch.ones_like(vectors[0]))
    # No row has audio.
    assert all(torch.equal(value, audio[name]) for name, value in model.mmemo.audio_branch.state_dict().items())


def test_only_the_given_branches_are_standardized(model, processor, inputs):
    before = copy.deepcopy(model.state_dict())

    standardize(model, ["audio"], inputs, EmotionCollator(processor))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_input_gives_no_nan(model, processor, inputs):
    standardize(model, ["text"], inputs[:1], EmotionCollator(processor))

    assert model(**processor(text="i am happy", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("modality", ["audio", "text"])
@torch.no_grad()
def test_cached_states_have_the_index_of_their_row(model, processor, make_clip, tmp_path, modality):
    soundfile.write(tmp_path / "clip.wav", make_clip(0.5), 16_000)
    audio = [None, {"bytes": None, "path": str(tmp_path / "clip.wav")}, None]
    texts = ["i am", None, "wait ! so sad"]
    rows = as_dataset([{"audio": clip, "text": text} for clip, text in zip(audio, texts)])
    tower = model.mmemo.audio_tower if modality == "audio" else model.mmemo.text_tower

    cached = tower_states(modality, tower, processor, rows, tmp_path / "cache")

    assert len(cached) == 3
    for index, value in enumerate(rows[modality]):
        assert (cached.length(index) == 0) == (value is None)
        if value is not None:
            inputs = processor(**{modality: value}, return_tensors="pt")
            expected = torch.stack(run_tower(modality, tower.eval(), inputs)[0])[:, 0]
            torch.testing.assert_close(torch.from_numpy(cached[index].copy()).float(), expected, atol=2e-3, rtol=2e-3)


def test_states_are_computed_again_for_another_tokenizer(model, processor, texts, tmp_path):
    tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)
    processor.tokenizer.model_max_length = 4

    cut = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)

    assert [cut[index].shape[1] for index in range(3)] == [4, 4, 3]


@pytest.mark.parametrize("change", ["samples", "modification time"])
def test_states_are_computed_again_for_a_changed_clip(model, processor, make_clip, tmp_path, change):
    path = tmp_path / "clip.wav"
    rows = as_dataset([{"audio": {"bytes": None, "path": str(path)}}])
    cached = []
    for attempt in range(2):
        # A clip of another length, or one of the same size written later.
        soundfile.write(path, make_clip(0.5 + 0.1 * attempt * (change == "samples"), seed=attempt), 16_000)
        os.utime(path, (attempt, attempt) if change == "modification time" else (0, 0))
        cached.append(tower_states("audio", model.mmemo.audio_tower, processor, rows, tmp_path / "cache"))

    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert cached[0].length(0) != cached[1].length(0) or (cached[0][0] != cached[1][0]).any()


def test_states_are_computed_again_for_changed_bytes(model, processor, make_clip, tmp_path):
    cached = []
    for seed in range(2):
        soundfile.write(tmp_path / "clip.wav", make_clip(0.5, seed), 16_000)
        rows = as_dataset([{"audio": {"bytes": (tmp_path / "clip.wav").read_bytes(), "path": "clip.wav"}}])
        cached.append(tower_states("audio", model.mmemo.audio_tower, processor, rows, tmp_path / "cache"))

    assert (cached[0][0] != cached[1][0]).any()


def test_running_statistics_equal_those_of_all_values():
    values = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0)) * 5 + 1000

    statistics = RunningStatistics()
    for batch in values.split([1, 20, 2, 27]):
        statistics.update(batch)

    torch.testing.assert_close(statistics.mean, values.double().mean(dim=0), atol=1e-4, rtol=0)
    torch.testing.assert_close(statistics.std, values.double().std(dim=0, correction=0), atol=1e-4, rtol=0)


def test_standardize_holds_the_states_of_one_input_at_a_time(model, processor, inputs, monkeypatch):
    states, alive = [], []

    def run(*args):
        layers, mask = run_tower(*args)
        states.extend(weakref.ref(layer) for layer in layers)
        alive.append(sum(layer() is not None for layer in states))
        return layers, mask

    monkeypatch.setattr("modeling_mmemo.training.features.run_tower", run)
    standardize(model, ["text"], inputs * 5, EmotionCollator(processor))

    num_layers = len(model.mmemo.text_branch.mix.weights)
    assert len(states) == 2 * 20 * num_layers
    assert max(alive) <= 2 * num_layers  # those of the last input and of this one


@pytest.fixture
def spoken(tmp_path, example_audio):
    """Rows of two videos with an utterance after 1.5 s of silence, whose third frame has no face; the processor of a
    tiny ViT, and the faces."""
    speech, rate = soundfile.read(example_audio, dtype="float32")
    sound = np.concatenate([np.zeros(3 * rate // 2, np.float32), speech])[: 4 * rate]
    portrait = read_portrait()[:256, 100:356]
    frames = np.stack([portrait] * 20)
    frames[2] = 0
    videos = []
    for name, count in (("long", 20), ("short", 15)):
        path = tmp_path / f"{name}.mp4"
        write_video(path, frames[:count], fps=5, samples=sound, sampling_rate=rate)
        videos.append({"bytes": None, "path": str(path)})
    processor = MMEmoProcessor(
        MMEmoFeatureExtractor(n_mels=8), frames_per_second=5.0, crop_size=8, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    rows = as_dataset([{"audio": video, "video": video, "label": "sad", "corpus": "one"} for video in videos])
    return rows, processor, Faces(FaceCache(processor, tmp_path / "cache"), videos)


@pytest.mark.parametrize("cached", [("audio",), ("video",), ("audio", "video")])
def test_frames_have_the_same_times_and_states_whichever_states_are_cached(spoken, tmp_path, cached):
    rows, processor, faces = spoken
    model = make_model(text=None, video="vit")
    towers = model.mmemo.towers
    states = {name: tower_states(name, towers[name], processor, rows, tmp_path / "cache", faces) for name in cached}

    def batch(states):
        drawn = EmotionRows(rows, range(2), ("sad",), states, processor, faces=faces)
        return EmotionCollator(processor)([drawn[0], drawn[1]])

    raw, found = batch({}), batch(states)

    is_found = raw["video_attention_mask"].bool()
    times, expected = ([part["video_times"][row] for row in range(2)] for part in (found, raw))
    if "video" in cached:
        expected = [times_of[mask] for times_of, mask in zip(expected, is_found)]
        assert found["video_attention_mask"].sum(dim=1).tolist() == is_found.sum(dim=1).tolist() == [19, 14]
    # Speech begins after 1.5 s, so the first frames lie before it, and later ones are earlier than in the video.
    assert (expected[0][:4] == -1).all() and 0 <= expected[0][-1, 0] < 3
    for row, want in zip(times, expected):
        torch.testing.assert_close(row[: len(want)], want)
    with torch.no_grad():
        model.eval()
        # States are cached in half precision.
        torch.testing.assert_close(model(**found).logits, model(**raw).logits, atol=2e-2, rtol=2e-2)
