import copy

import pytest
import soundfile
import torch

from modeling_mmemo.data.schema import as_dataset
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import run_tower, standardize, tower_states


@pytest.fixture
def texts():
    return as_dataset([{"text": text} for text in ("i am happy", "you are not so sad !", "wait")])


def test_kept_states_give_the_models_own_answer(model, processor, texts, tmp_path):
    kept = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)
    inputs = processor(text="you are not so sad !", return_tensors="pt")

    with torch.no_grad():
        expected = model(**inputs).logits
        states = torch.from_numpy(kept[1].copy()).float().unsqueeze(1)
        logits = model(text_hidden_states=states.unbind()).logits

    assert len(kept) == 3
    torch.testing.assert_close(logits, expected, atol=5e-3, rtol=5e-3)  # they are kept in half precision


def test_states_are_computed_once_and_anew_for_other_weights(model, processor, texts, tmp_path):
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
    """Training rows as the collator takes them."""
    target = {"labels": 0, "label_mask": torch.ones(4, dtype=torch.long)}
    return [{**target, "text": text} for text in ("i am happy", "you are not so sad !", "wait", "so sad .")]


def pooled(model, texts, processor):
    """What the text branch pools, and all positions of its layers, `(layers, positions, hidden)`."""
    branch = model.mmemo.text_branch
    states = [model(**processor(text=text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    layers = [torch.stack(output.text_hidden_states) for output in states]
    mixed = [branch.mix(layer.unbind()) for layer in layers]
    vectors = torch.cat([branch.pooling(states, torch.ones(states.shape[:2])) for states in mixed])
    return vectors, torch.cat([layer[:, 0] for layer in layers], dim=1)


@torch.no_grad()
def test_standardized_features_have_mean_0_and_deviation_1(model, processor, inputs):
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
    # There was no voice to learn from.
    assert all(torch.equal(value, audio[name]) for name, value in model.mmemo.audio_branch.state_dict().items())


def test_only_the_branches_asked_for_are_standardized(model, processor, inputs):
    before = copy.deepcopy(model.state_dict())

    standardize(model, ["audio"], inputs, EmotionCollator(processor))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_input_alone_gives_no_nan(model, processor, inputs):
    standardize(model, ["text"], inputs[:1], EmotionCollator(processor))

    assert model(**processor(text="i am happy", return_tensors="pt")).logits.isfinite().all()


@pytest.mark.parametrize("modality", ["audio", "text"])
@torch.no_grad()
def test_kept_states_of_rows_stand_at_their_numbers(model, processor, make_clip, tmp_path, modality):
    soundfile.write(tmp_path / "clip.wav", make_clip(0.5), 16_000)
    audio = [None, {"bytes": None, "path": str(tmp_path / "clip.wav")}, None]
    texts = ["i am", None, "wait ! so sad"]
    rows = as_dataset([{"audio": clip, "text": text} for clip, text in zip(audio, texts)])
    tower = model.mmemo.audio_tower if modality == "audio" else model.mmemo.text_tower

    kept = tower_states(modality, tower, processor, rows, tmp_path / "kept")

    assert len(kept) == 3
    for index, value in enumerate(rows[modality]):
        assert (kept.length(index) == 0) == (value is None)
        if value is not None:
            inputs = processor(**{modality: value}, return_tensors="pt")
            expected = torch.stack(run_tower(modality, tower.eval(), inputs)[0])[:, 0]
            torch.testing.assert_close(torch.from_numpy(kept[index].copy()).float(), expected, atol=2e-3, rtol=2e-3)


def test_states_are_computed_anew_for_another_tokenizer(model, processor, texts, tmp_path):
    tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)
    processor.tokenizer.model_max_length = 4

    cut = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)

    assert [cut[index].shape[1] for index in range(3)] == [4, 4, 3]
