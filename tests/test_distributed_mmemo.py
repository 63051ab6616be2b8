import pytest
import torch
from tiny import AUDIO_ONLY, make_inputs, make_model, rows
from torch.distributed.fsdp import FSDPModule

from modeling_mmemo import distributed_mmemo


@pytest.fixture
def two_processes(monkeypatch):
    """Pretends that another process trains, too."""
    monkeypatch.setattr(distributed_mmemo, "is_distributed", lambda: True)


def audio_batch():
    inputs = rows(make_inputs(), [AUDIO_ONLY])
    return {**{name: inputs[name] for name in ("input_features", "audio_attention_mask")}, "labels": torch.tensor([1])}


def gradients(model):
    loss = model.train()(**audio_batch()).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_parameters_of_a_missing_modality_have_zero_gradients(two_processes, monkeypatch):
    torch.manual_seed(0)
    together_loss, together = gradients(make_model(fusion_dropout=0.0))
    monkeypatch.undo()
    torch.manual_seed(0)
    alone_loss, alone = gradients(make_model(fusion_dropout=0.0))

    assert together_loss == alone_loss
    assert any(gradient is None for gradient in alone.values())
    for name, gradient in together.items():
        expected = torch.zeros_like(gradient) if alone[name] is None else alone[name]
        assert torch.equal(gradient, expected), name


def test_sharded_parameters_are_left_alone_with_a_warning(two_processes, monkeypatch, caplog):
    model = make_model()
    monkeypatch.setattr(distributed_mmemo, "is_sharded", lambda model: True)

    _, found = gradients(model)

    assert any(gradient is None for gradient in found.values())
    assert "Under FSDP and ZeRO-3 the processes wait for each other forever unless" in caplog.text


def test_a_model_with_a_sharded_part_is_sharded():
    model = make_model()
    assert not distributed_mmemo.is_sharded(model)

    encoder = model.mmemo.audio_tower
    encoder.__class__ = type("Sharded", (FSDPModule, type(encoder)), {})

    assert distributed_mmemo.is_sharded(model)


def test_one_process_is_not_distributed():
    assert not distributed_mmemo.is_distributed()
