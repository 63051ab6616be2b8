"""The shared space of modalities and its contrastive loss."""

import math

import pytest
import torch
from tiny import AUDIO_ONLY, BOTH, TEXT_ONLY, WHOLE, make_inputs, make_model, rows
from torch import distributed, multiprocessing

from modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.shared_space_mmemo import MAX_LOGIT_SCALE, contrastive_loss, hash_texts


ALL = torch.ones(2, dtype=torch.bool)
CAPTIONS = torch.tensor([[5, 6, 7], [8, 9, 0]])
CAPTION_MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def unit(*angles):
    """Vectors of length 1 at angles in degrees."""
    radians = torch.tensor(angles, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def loss_of(first, second, rows=None, texts=None, scale=2.0):
    rows = torch.ones(len(first), dtype=torch.bool) if rows is None else rows
    texts = torch.arange(len(first)) if texts is None else torch.tensor(texts)
    return contrastive_loss(first, second, rows, texts, torch.tensor(scale, dtype=torch.float64))


def test_loss_by_hand():
    # Cosines: 1 and 0 of the first vector with both captions, 0.5 and cos(30 deg) of the second one.
    first, second = unit(0, 60), unit(0, 90)
    a, b, c, d = (2 * cosine for cosine in (1.0, 0.0, 0.5, math.cos(math.radians(30))))

    def log_sum(*values):
        return math.log(sum(map(math.exp, values)))

    of_first = log_sum(a, b) - a + log_sum(c, d) - d
    of_second = log_sum(a, c) - a + log_sum(b, d) - d
    assert loss_of(first, second).item() == pytest.approx((of_first + of_second) / 4)


def test_rows_with_the_same_text_are_not_negatives():
    first, second = unit(0, 60, 200), unit(0, 0, 90)
    similarities = 2 * first @ second.T
    similarities[0, 1] = similarities[1, 0] = -math.inf
    expected = (similarities.logsumexp(dim=1) + similarities.logsumexp(dim=0) - 2 * similarities.diagonal()).sum() / 6

    assert loss_of(first, second, texts=[4, 4, 9]).item() == pytest.approx(expected.item())
    assert loss_of(first, second, texts=[4, 5, 9]) > expected


def test_rows_that_are_no_pair_neither_count_nor_are_candidates():
    first, second = unit(0, 60, 200), unit(0, 90, 10)
    without = loss_of(first[:2], second[:2])

    assert loss_of(first, second, rows=torch.tensor([True, True, False])) * 3 == pytest.approx((without * 2).item())
    assert loss_of(first, second, rows=torch.zeros(3, dtype=torch.bool)) == 0


def test_texts_have_a_hash_whatever_their_padding():
    left = hash_texts(torch.tensor([[0, 5, 6], [5, 6, 7], [6, 5, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 0]]))
    right = hash_texts(torch.tensor([[5, 6, 3, 3]]), torch.tensor([[1, 1, 0, 0]]))

    assert left[0] == right[0]
    assert len(set(left.tolist())) == 3


@pytest.mark.parametrize("learned, scale", [(-3.0, 1.0), (math.log(20), 20.0), (9.0, 100.0), (MAX_LOGIT_SCALE, 100.0)])
def test_the_temperature_is_bounded(learned, scale):
    model = make_model(projection_dim=4)
    model.shared_space.logit_scale.data.fill_(learned)

    assert model.shared_space.scale.item() == pytest.approx(scale, rel=1e-5)


@torch.no_grad()
def test_projections_have_length_1_and_are_0_without_the_modality():
    inputs = rows(make_inputs(), [BOTH, AUDIO_ONLY, TEXT_ONLY])
    model = make_model(projection_dim=4).eval()
    output = model(**inputs, segment_times=torch.tensor([[[0.0, 0.5]]] * 3))

    lengths = torch.stack([output.audio_projection.norm(dim=1), output.text_projection.norm(dim=1)], dim=1)
    torch.testing.assert_close(lengths, torch.tensor([[1.0, 1], [1, 0], [0, 1]]))
    assert output.segment_audio_projection.shape == (3, 1, 4)
    assert output.fused_embeds.shape == output.audio_embeds.shape == (3, model.config.fusion_hidden_size)


@torch.no_grad()
def test_the_contrastive_loss_of_the_model_is_that_of_its_projections():
    inputs = rows(make_inputs(), [BOTH, WHOLE])
    model = make_model(projection_dim=4).eval()
    output = model(**inputs, caption_ids=CAPTIONS, caption_mask=CAPTION_MASK)
    captions = model(input_ids=CAPTIONS, attention_mask=CAPTION_MASK).text_projection

    expected = sum(
        contrastive_loss(vectors, captions, ALL, torch.arange(2), model.shared_space.scale)
        for vectors in (output.audio_projection, output.text_projection)
    )
    assert output.loss == pytest.approx(expected.item())


def test_the_contrastive_loss_needs_a_shared_space_and_excludes_labels():
    inputs = rows(make_inputs(), [BOTH, WHOLE])
    with pytest.raises(ValueError, match="projection_dim=None and a text encoder"):
        make_model()(**inputs, caption_ids=CAPTIONS)
    with pytest.raises(ValueError, match="labels and caption_ids"):
        make_model(projection_dim=4)(**inputs, caption_ids=CAPTIONS, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="projection_dim=0 must be at least 1"):
        make_model(projection_dim=0)


def test_the_shared_space_is_saved_and_reloaded(tmp_path):
    model = make_model(projection_dim=4)
    model.shared_space.logit_scale.data.fill_(1.5)
    model.save_pretrained(tmp_path)
    loaded = MMEmoForEmotionRecognition.from_pretrained(tmp_path)

    assert not loaded.missing_keys_on_load
    for name, values in model.shared_space.state_dict().items():
        assert torch.equal(loaded.shared_space.state_dict()[name], values), name


def train_half(rank, folder, sizes):
    """Saves the loss and the gradients of one process's part of the batch."""
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(sizes))
    start = sum(sizes[:rank])
    loss, gradient = loss_and_gradient(slice(start, start + sizes[rank]))
    torch.save({"loss": loss, "gradient": gradient}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def loss_and_gradient(part):
    weight = torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    inputs, captions = (torch.randn(6, 3, generator=generator, dtype=torch.float64)[part] for _ in range(2))
    texts = torch.tensor([0, 1, 2, 0, 3, 4])[part]
    pairs = torch.tensor([True, True, True, True, False, True])[part]
    first, second = (torch.nn.functional.normalize(values @ weight, dim=1) for values in (inputs, captions))
    loss = contrastive_loss(first, second, pairs, texts, torch.tensor(5.0, dtype=torch.float64))
    loss.backward()
    return loss.detach(), weight.grad


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3, 3), (4, 2)])
def test_two_processes_have_the_loss_and_the_gradient_of_one_with_all_rows(tmp_path, sizes):
    expected_loss, expected = loss_and_gradient(slice(None))
    multiprocessing.spawn(train_half, (str(tmp_path), sizes), nprocs=len(sizes))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(sizes))]

    # Each process divides by its own batch size, as DDP does, and DDP averages the gradients of the processes.
    weights = [size / sum(sizes) for size in sizes]
    loss = sum(weight * one["loss"] for weight, one in zip(weights, found))
    torch.testing.assert_close(loss, expected_loss)
    if sizes[0] == sizes[1]:
        torch.testing.assert_close(sum(weight * one["gradient"] for weight, one in zip(weights, found)), expected)
