import shutil

import numpy as np
import pytest
import soundfile
import torch
from tiny import make_config, make_model

from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.schema import as_dataset
from modeling_mmemo.modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.training import augmented_copies as module
from modeling_mmemo.training.augmented_copies import augmented_copies, pool_positions, pooled_layers
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.features import run_tower
from modeling_mmemo.training.rows import EmotionRows, load_clip


LABELS = ("angry", "happy", "sad")
AUGMENTATION = Augmentation(noise_probability=1.0, speed_probability=0.5, spec_augment_probability=1.0)
TARGET = {"labels": 0, "label_mask": torch.ones(4, dtype=torch.long)}


@pytest.fixture
def table(tmp_path, make_clip):
    """Four clips of different lengths, of which the last is for development, and a text in between."""
    rows = []
    for seed in range(4):
        path = tmp_path / f"{seed}.wav"
        soundfile.write(path, make_clip(0.3 + 0.1 * seed, seed), 16_000)
        rows.append({"audio": {"bytes": None, "path": str(path)}, "label": LABELS[seed % 3], "corpus": "one"})
    rows.insert(1, {"text": "wait", "label": "sad", "corpus": "one"})
    return as_dataset(rows)


@pytest.fixture
def pooled_model(model):
    """A model whose audio branch pools each layer."""
    config = type(model.config).from_dict(
        model.config.to_dict() | {"fusion": "late", "audio_layer_mix": "concat", "audio_pooling": "mean_std"}
    )
    torch.manual_seed(0)
    return MMEmoForEmotionRecognition(config).eval()


@pytest.fixture
def cache(pooled_model, processor, table, tmp_path):
    def make(folder=tmp_path / "cache", rows=table, copied=(0, 1, 2, 3), copies=3, **options):
        options = {"augmentation": AUGMENTATION, "seed": 0, **options}
        tower, config = pooled_model.mmemo.audio_tower, pooled_model.config
        return augmented_copies(tower, config, processor, rows, copied, copies, cache_dir=folder, **options)

    return make


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize(("pooling", "mix"), [("mean_std", "concat"), ("mean_std", "last"), ("mean", "weighted_sum")])
@torch.no_grad()
def test_pooled_positions_equal_the_whole_sequence(pooling, mix, offset):
    """Also where the mean of a state is 300 times its standard deviation."""
    model = make_model(fusion="late", audio_pooling=pooling, audio_layer_mix=mix)
    layers, has_std = pooled_layers(model.config)
    random = torch.Generator().manual_seed(0)
    states = tuple(torch.randn(4, 50, 16, generator=random) + offset for _ in range(3))
    mask = torch.arange(50) < torch.tensor([[50], [20], [1], [0]])
    pooled = tuple(pool_positions(layer, mask, has_std) for layer in states[-layers:])
    pooled_mask = mask.any(dim=1, keepdim=True).expand(-1, 2 if has_std else 1)
    branch = model.mmemo.audio_branch
    for statistics in (branch.mix.standardization, branch.standardization):
        statistics.set(torch.full_like(statistics.mean, offset), torch.full_like(statistics.std, 1.5))

    # In double precision, because the pooling itself rounds in single precision.
    branch.double()
    expected = branch.pool(states, branch.mix(tuple(layer.double() for layer in states)), mask.unsqueeze(1))
    found = branch.pool(pooled, branch.mix(tuple(layer.double() for layer in pooled)), pooled_mask.unsqueeze(1))

    torch.testing.assert_close(found[:3], expected[:3], atol=1e-5 if offset == 0 else 1e-4, rtol=1e-5)
    assert not found[3].any()


@torch.no_grad()
def test_cached_copies_give_the_logits_of_augmented_clips(cache, pooled_model, processor, table):
    cached = cache(copies=2)
    collator = EmotionCollator(processor, Augmentation(noise_probability=1.0, speed_probability=0.5))
    without_masks = cache(copies=2, augmentation=collator.augmentation)

    for index, number in ((0, 0), (0, 1), (3, 2), (4, 0)):
        augmentation = collator.augmentation if number else None
        rng = np.random.default_rng((0, index, number))
        clip = load_clip(table[index]["audio"], None, processor, augmentation, rng)
        expected = pooled_model(**collator([{**TARGET, **clip}])).logits
        found = pooled_model(**collator([{**TARGET, "audio": without_masks.copy(index, number)}])).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    # SpecAugment changes the copies, and only these.
    np.testing.assert_allclose(cached[0], without_masks[0], atol=1e-5)
    assert not np.allclose(cached.copy(0, 1), without_masks.copy(0, 1), atol=1e-3)


def test_only_the_given_rows_have_copies(cache):
    cached = cache()

    assert len(cached) == 5
    assert [cached.num_copies(index) for index in range(5)] == [3, 0, 3, 3, 0]
    assert [cached.length(index) for index in range(5)] == [2, 0, 2, 2, 2]
    assert cached[4].dtype == np.float32
    assert cached[4].shape == (3, 2, 16)


def test_training_rows_draw_every_copy_and_development_rows_none(cache, table, processor):
    cached = cache()
    train = EmotionRows(table, (0, 2, 3), LABELS, {"audio": cached}, processor, AUGMENTATION)
    dev = EmotionRows(table, (4,), LABELS, {"audio": cached}, processor)

    counts = np.zeros((3, 4))
    for epoch in range(200):
        train.set_epoch(epoch)
        for position, index in enumerate((0, 2, 3)):
            copies = [np.array_equal(train[position]["audio"], cached.copy(index, number)) for number in range(4)]
            counts[position] += copies

    assert counts.sum() == 600
    assert counts.min() > 30
    assert np.array_equal(dev[0]["audio"], cached[4])


def test_the_same_seed_gives_the_same_copies_in_another_run(cache, tmp_path):
    one, other, seeded = cache(), cache(tmp_path / "other"), cache(seed=1)

    for index in (0, 2, 3):
        for number in range(4):
            assert np.array_equal(one.copy(index, number), other.copy(index, number))
        assert not np.allclose(one.copy(index, 1), one.copy(index, 2), atol=1e-4)
        assert not np.allclose(one.copy(index, 1), seeded.copy(index, 1), atol=1e-4)


def test_runs_on_some_of_the_same_corpora_share_a_cache(cache, table, tmp_path, monkeypatch):
    corpora = [{**row, "corpus": name} for row, name in zip(table, ("one", "one", "two", "one", "two"))]
    both = cache(rows=as_dataset(corpora), copied=(0, 2, 3))
    monkeypatch.setattr(module, "run_tower", None)
    second = cache(rows=as_dataset([corpora[2], corpora[4]]), copied=(0,))

    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert [second.num_copies(index) for index in range(2)] == [3, 0]
    assert np.array_equal(second.copy(0, 1), both.copy(2, 1))
    assert np.array_equal(second[1], both[4])


def test_copies_are_computed_once_and_again_for_other_options(cache, tmp_path, monkeypatch):
    cache()
    with monkeypatch.context() as patched:
        patched.setattr(module, "run_tower", None)
        cache()
    assert len(list((tmp_path / "cache").iterdir())) == 1

    cache(seed=1)
    cache(copies=2)
    cache(copied=(0, 2))
    cache(augmentation=Augmentation(noise_probability=1.0, snr_db=[0.0, 1.0]))
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_an_interrupted_cache_is_continued(cache, tmp_path, monkeypatch):
    expected = cache()
    (folder,) = (tmp_path / "cache").iterdir()
    interrupted = tmp_path / "interrupted" / folder.name
    shutil.copytree(folder, interrupted)
    (interrupted / "places.npy").unlink()
    written = (interrupted / "states.bin").read_bytes()
    entry = 3 * 2 * 16 * 4
    # The batch of the clips themselves and of the first copies, and one clip of the second copies.
    (interrupted / "states.bin").write_bytes(written[: 8 * entry])
    batches = []

    def run(*args):
        batches.append(len(args[2]["audio_attention_mask"]))
        return run_tower(*args)

    monkeypatch.setattr(module, "run_tower", run)
    continued = cache(tmp_path / "interrupted")

    assert batches == [3, 3]
    assert (interrupted / "states.bin").read_bytes() == written
    assert np.array_equal(continued.copy(3, 3), expected.copy(3, 3))


@pytest.mark.slow
def test_workers_compute_the_same_copies(cache, tmp_path):
    expected, found = cache(), cache(tmp_path / "other", num_workers=2)

    assert all(np.array_equal(found.copy(0, number), expected.copy(0, number)) for number in range(4))


def test_clips_with_word_times_are_not_cropped(cache, table):
    words = [{"word": "wait", "start": 0.1, "end": 0.2}]
    timed = as_dataset([{**row, "text": "wait", "word_times": words} for row in table])
    cropping = Augmentation(crop_probability=1.0, crop_s=[0.1, 0.15])

    cropped, whole = cache(augmentation=cropping), cache(rows=timed, augmentation=cropping)

    np.testing.assert_allclose(whole.copy(0, 1), whole[0], atol=1e-6)
    assert not np.allclose(cropped.copy(0, 1), cropped[0], atol=1e-3)


def test_rows_without_clips_have_no_states(cache):
    cached = cache(rows=as_dataset([{"text": "wait"}]), copied=(0,))

    assert (cached.length(0), cached[0].shape) == (0, (3, 0, 16))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fusion": "late", "audio_layer_mix": "concat"}, (3, True)),
        ({"fusion": "early", "audio_layer_mix": "last"}, (1, True)),
        ({"fusion": "late", "audio_pooling": "mean"}, (3, False)),
        ({"text": None, "audio_layer_mix": "concat"}, (3, True)),
    ],
)
def test_layers_that_a_branch_needs(fields, expected):
    assert pooled_layers(make_config(**fields)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"audio_layer_mix": "concat"},
            "fusion=hybrid, audio_layer_mix=concat and audio_pooling=mean_std of ",
        ),
        (
            {"fusion": "late"},
            "fusion=late, audio_layer_mix=weighted_sum and .* with fusion=early or late",
        ),
        ({"fusion": "late", "audio_layer_mix": "last", "audio_pooling": "attention"}, "audio_pooling=attention"),
        ({"audio": None}, "of a model without audio"),
    ],
)
def test_branches_that_need_the_whole_sequence_raise(fields, message):
    with pytest.raises(ValueError, match=f"augmented_copies contradicts .*{message}"):
        pooled_layers(make_config(**fields))
