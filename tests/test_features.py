import pytest
import torch
from datasets import Dataset

from modeling_mmemo.training.features import standardize, tower_states


@pytest.fixture
def texts():
    return Dataset.from_dict({"text": ["i am happy", "you are not so sad !", "wait"]})


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


def test_standardized_features_have_mean_0_and_deviation_1(model, processor, texts, tmp_path):
    branch = model.mmemo.text_branch
    kept = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)

    standardize(branch, kept, [0, 1, 2])

    with torch.no_grad():
        layers = [torch.from_numpy(kept[index].copy()).float().unsqueeze(1) for index in range(3)]
        mixed = [branch.mix(states.unbind()) for states in layers]
        pooled = torch.cat([branch.pooling(states, torch.ones(states.shape[:2])) for states in mixed])
        positions = torch.cat([states[:, 0] for states in layers], dim=1)
    scaled = (positions - branch.mix.standardization.mean[:, None]) / branch.mix.standardization.std[:, None]
    torch.testing.assert_close(scaled.mean(dim=1), torch.zeros(scaled.shape[0], scaled.shape[2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(branch.standardization(pooled).std(dim=0), torch.ones(pooled.shape[1]))


def test_states_are_computed_anew_for_another_tokenizer(model, processor, texts, tmp_path):
    tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)
    processor.tokenizer.model_max_length = 4

    cut = tower_states("text", model.mmemo.text_tower, processor, texts, tmp_path)

    assert [cut[index].shape[1] for index in range(3)] == [4, 4, 3]
