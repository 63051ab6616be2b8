from math import log, nan

import pytest
import torch
from tiny import AUDIO_ONLY, BOTH, TEXT_ONLY, WHOLE, make_config, make_inputs, make_model, rows

from modeling_mmemo.losses_mmemo import emotion_loss


def constant_model(logits, audio_logits=None, text_logits=None, **fields):
    """An early-fusion model whose heads return the same logits for every input."""
    model = make_model(fusion="early", num_labels=len(logits), **fields)
    for head, bias in (
        (model.fused_classifier, logits),
        (model.audio_classifier, audio_logits or logits),
        (model.text_classifier, text_logits or logits),
    ):
        head.weight.data.zero_()
        head.bias.data = torch.tensor(bias)
    return model


def loss_of(model, samples, labels, **kwargs):
    return model(**rows(make_inputs(), samples), labels=torch.tensor(labels), **kwargs).loss.item()


@torch.no_grad()
def test_loss_of_the_prediction_and_of_every_head_by_hand():
    # Probabilities of label 0: 1/4 fused, 1/2 audio, 3/4 text.
    model = constant_model([0.0, log(3)], [0.0, 0.0], [log(3), 0.0], modality_loss_weight=0.3)
    heads = log(2) + log(4 / 3) + log(4)
    assert loss_of(model, [BOTH, WHOLE], [0, 0]) == pytest.approx(log(4) + 0.3 * heads)
    # Each head has a loss for the samples with its inputs: audio for 0 and 2, text for 0 and 1, fused for 0.
    # Labels 0, 1, 1: text has 3/4 and 1/4. All are divided by the three samples.
    heads = (2 * log(2) + log(4 / 3) + log(4) + log(4)) / 3
    prediction = (log(4) + log(4 / 3) + log(4 / 3)) / 3
    assert loss_of(model, [BOTH, TEXT_ONLY, AUDIO_ONLY], [0, 1, 1]) == pytest.approx(prediction + 0.3 * heads)


@torch.no_grad()
def test_multi_label_loss_by_hand():
    model = constant_model([0.0, log(3)], problem_type="multi_label_classification", modality_loss_weight=0)
    # -ln 1/2 for the first label, -ln(1 - 3/4) for the second.
    assert loss_of(model, [BOTH], [[1, 0]]) == pytest.approx((log(2) + log(4)) / 2)


@torch.no_grad()
def test_regression_loss_by_hand():
    model = constant_model([1.0, 2.0], problem_type="regression", modality_loss_weight=0)
    assert loss_of(model, [BOTH, WHOLE], [[0.0, 4.0], [1.0, 2.0]]) == pytest.approx(((1 + 4) / 2 + 0) / 2)


@torch.no_grad()
def test_one_label_is_a_regression():
    model = constant_model([1.0], modality_loss_weight=0)
    assert loss_of(model, [BOTH, WHOLE], [3.0, 1.0]) == pytest.approx((4 + 0) / 2)


@torch.no_grad()
@pytest.mark.parametrize("labels, loss", [([0, -100], log(4)), ([-100, 1], log(4 / 3)), ([-100, -100], 0.0)])
def test_a_label_of_minus_100_is_ignored(labels, loss):
    model = constant_model([0.0, log(3)], modality_loss_weight=1.0)
    # The prediction and three heads with the same logits, over two samples.
    assert loss_of(model, [BOTH, WHOLE], labels) == pytest.approx(4 * loss / 2)


def test_losses_of_parts_of_a_batch_add_up():
    model = make_model(modality_loss_weight=0.3).double()
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in make_inputs().items()}
    labels = torch.tensor([0, 3, 5, 6])
    parts = [model(**rows(inputs, part), labels=labels[part]).loss for part in ([0, 1], [2, 3])]
    torch.testing.assert_close(sum(parts) / 2, model(**inputs, labels=labels).loss)


@torch.no_grad()
def test_label_smoothing_by_hand():
    mask = torch.tensor([[1, 0, 1]])
    model = constant_model([0.0, log(96), log(3)], modality_loss_weight=0, label_smoothing=0.2)
    # Probabilities 1/4 and 3/4 of the two known labels; a tenth of the target goes to each.
    expected = 0.9 * log(4) + 0.1 * log(4 / 3)
    assert loss_of(model, [BOTH], [0], label_mask=mask) == pytest.approx(expected)


@torch.no_grad()
def test_focal_loss_by_hand():
    model = constant_model([0.0, log(3)], modality_loss_weight=0, focal_gamma=2.0)
    assert loss_of(model, [BOTH, WHOLE], [0, 1]) == pytest.approx((0.75**2 * log(4) + 0.25**2 * log(4 / 3)) / 2)


@torch.no_grad()
def test_class_weights_by_hand():
    model = constant_model([0.0, log(3)], modality_loss_weight=0, class_weights=[1.5, 0.5])
    assert loss_of(model, [BOTH, WHOLE], [0, 1]) == pytest.approx((1.5 * log(4) + 0.5 * log(4 / 3)) / 2)


@torch.no_grad()
def test_loss_weights_by_hand():
    model = constant_model([0.0, log(3)], modality_loss_weight=1.0)
    weight = torch.tensor([2.0, 0.5])
    # The prediction and three heads; divided by the number of rows, not by the sum of their weights.
    expected = 4 * (2 * log(4) + 0.5 * log(4 / 3)) / 2
    assert loss_of(model, [BOTH, WHOLE], [0, 1], loss_weight=weight) == pytest.approx(expected)
    ones = loss_of(model, [BOTH, WHOLE], [0, 1], loss_weight=torch.ones(2))
    assert ones == loss_of(model, [BOTH, WHOLE], [0, 1])


@torch.no_grad()
def test_weighted_losses_of_parts_of_a_batch_add_up():
    model, inputs = make_model(modality_loss_weight=0.3), make_inputs()
    labels, weight = torch.tensor([0, 3, 5, 6]), torch.tensor([0.2, 3.0, 1.0, 0.5])
    parts = [
        model(**rows(inputs, part), labels=labels[part], loss_weight=weight[part]).loss for part in ([0, 1], [2, 3])
    ]
    torch.testing.assert_close(sum(parts) / 2, model(**inputs, labels=labels, loss_weight=weight).loss)


@torch.no_grad()
def test_masked_labels_are_excluded_from_the_loss():
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]])
    model = constant_model([0.0, log(96), log(3)], modality_loss_weight=0)
    # 1 / (1 + 3) where the second label is masked, 1 / (1 + 96 + 3) where it is not.
    loss = loss_of(model, [BOTH, WHOLE], [0, 0], label_mask=mask)
    assert loss == pytest.approx((log(4) + log(100)) / 2)

    model = constant_model([0.0, log(96), log(3)], problem_type="multi_label_classification", modality_loss_weight=0)
    loss = loss_of(model, [BOTH], [[1, 0, 0]], label_mask=mask[:1])
    assert loss == pytest.approx((log(2) + log(4)) / 2)


def test_masked_labels_have_no_gradient():
    model = make_model(num_labels=3)
    mask = torch.tensor([[1, 0, 1]]).repeat(4, 1)
    model(**make_inputs(), labels=torch.tensor([0, 2, 0, 2]), label_mask=mask).loss.backward()
    gradient = model.fused_classifier.bias.grad
    assert gradient[[0, 2]].abs().min() > 1e-4
    # The votes of the heads round differently.
    assert gradient[1].abs() < 1e-8


def loss_and_gradient(logits, labels, label_mask=None, present=None, **fields):
    """The loss of some logits, and its gradient."""
    logits = torch.tensor(logits).requires_grad_()
    config = make_config(num_labels=logits.shape[1], **fields)
    mask = None if label_mask is None else torch.tensor(label_mask)
    present = torch.ones(len(logits), dtype=torch.bool) if present is None else torch.tensor(present)
    loss = emotion_loss(config, logits, torch.tensor(labels), mask, present)
    loss.backward()
    return loss.item(), logits.grad


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logits", [[200.0, 0.0], [0.0, 200.0], [1e38, 0.0], [0.0, 0.0], [18.0, 0.0]])
def test_focal_loss_has_finite_gradients(gamma, logits):
    # The probability of the true label is exactly 1 in the first, 0 in the second.
    loss, gradient = loss_and_gradient([logits], [0], focal_gamma=gamma)
    assert loss >= 0
    assert gradient.isfinite().all()


def test_focal_loss_of_an_exponent_below_one_by_hand():
    loss, gradient = loss_and_gradient([[0.0, log(3)]], [0], focal_gamma=0.5)
    assert loss == pytest.approx(0.75**0.5 * log(4))
    # d/dz of -(1 - p)^g ln p, where dp/dz = p (1 - p).
    expected = 0.5 * 0.75**-0.5 * 0.25 * 0.75 * log(1 / 4) - 0.75**0.5 * 0.75
    assert gradient[0, 0].item() == pytest.approx(expected, rel=1e-5)


LOSS_FIELDS = [
    {},
    {"focal_gamma": 0.5},
    {"focal_gamma": 2.0},
    {"label_smoothing": 0.1},
    {"class_weights": [3.0, 0.0, 1.0]},
    {"class_weights": [3.0, 0.0, 1.0], "label_smoothing": 0.1, "focal_gamma": 0.5},
]


@pytest.mark.parametrize("fields", LOSS_FIELDS)
@pytest.mark.parametrize("label_mask", [[0, 1, 1], [0, 0, 1], [0, 0, 0]])
def test_an_ignored_row_adds_nothing_under_any_mask(fields, label_mask):
    logits = [[0.5, -0.3, 0.2], [1.0, 2.0, 3.0]]
    alone, gradient = loss_and_gradient(logits[:1], [2], [[1, 0, 1]], **fields)
    both, gradients = loss_and_gradient(logits, [2, -100], [[1, 0, 1], label_mask], **fields)
    assert both == pytest.approx(alone / 2)
    torch.testing.assert_close(gradients[0], gradient[0] / 2)
    assert not gradients[1].any()


@pytest.mark.parametrize("fields", LOSS_FIELDS)
def test_a_batch_of_ignored_rows_has_no_loss(fields):
    loss, gradient = loss_and_gradient([[1.0, 2.0, 3.0]] * 2, [-100, -100], [[0, 1, 1], [0, 0, 0]], **fields)
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("fields", LOSS_FIELDS)
def test_the_true_class_is_included_even_if_masked(fields):
    with_mask = loss_and_gradient([[1.0, 2.0, 3.0]], [0], [[0, 0, 1]], **fields)
    torch.testing.assert_close(with_mask, loss_and_gradient([[1.0, 2.0, 3.0]], [0], [[1, 0, 1]], **fields))


def test_an_unknown_class_index_raises():
    with pytest.raises(RuntimeError, match="out of bounds"):
        loss_and_gradient([[1.0, 2.0]], [-1])


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_missing_targets_are_ignored(kind):
    logits = [[0.5, -0.3], [1.0, 2.0], [3.0, 4.0]]
    loss, gradient = loss_and_gradient(logits, [[1.0, 0.0], [0.0, nan], [nan, nan]], problem_type=kind)
    masked = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1, 1], [1, 0], [0, 0]]
    torch.testing.assert_close((loss, gradient), loss_and_gradient(logits, *masked, problem_type=kind))
    assert gradient[:2].flatten()[:3].all()
    assert not gradient[1, 1] and not gradient[2].any()
    # A target under a mask of 0 may be missing too.
    both = [[1.0, 0.0], [0.0, nan], [nan, nan]], [[1, 1], [1, 0], [0, 0]]
    torch.testing.assert_close((loss, gradient), loss_and_gradient(logits, *both, problem_type=kind))


def test_rows_without_the_inputs_of_a_head_have_no_gradient():
    loss, gradient = loss_and_gradient([[1.0, 2.0]] * 2, [0, 1], present=[False, True])
    assert loss == pytest.approx(log(1 + 2.718281828**-1) / 2)
    assert not gradient[0].any()


def test_losses_of_half_precision_logits_are_float32():
    logits = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    loss = emotion_loss(make_config(num_labels=2), logits, torch.tensor([0]), None, torch.tensor([True]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(log(1 + 2.718281828))
