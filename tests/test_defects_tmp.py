"""Failing first; moved to their files afterwards."""

import json
import logging
import os
import shutil
import weakref

import pytest
import soundfile
import torch
from test_build import LABELS, arguments, halves  # noqa: F401
from test_rows import make_row, select  # noqa: F401
from tiny import make_model

from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.schema import as_dataset
from modeling_mmemo.training import features
from modeling_mmemo.training.adapters import lora_modules
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.collator import EmotionCollator
from modeling_mmemo.training.training_arguments import parse_arguments


def test_labels_default_to_checkpoint(halves):
    model, _, _ = build_model(arguments(model_name_or_path=str(halves[0])), ())
    assert list(model.config.id2label.values()) == list(LABELS)


def test_reordering_refused(halves):
    with pytest.raises(ValueError, match="order"):
        build_model(arguments(model_name_or_path=str(halves[0])), ("sad", "happy", "angry"))


def test_same_size_head_is_new(halves):
    before, _, _ = build_model(arguments(model_name_or_path=str(halves[0])), LABELS)
    model, _, _ = build_model(arguments(model_name_or_path=str(halves[0])), ("angry", "happy", "calm"))
    assert not torch.equal(model.audio_classifier.weight, before.audio_classifier.weight)


def test_persistent(make_row, select):  # noqa: F811
    table = [make_row("sad", text=str(i)) for i in range(8)]
    rows = select(table, weights=[0.5] * 8)
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=1, persistent_workers=True)
    texts = []
    for epoch in range(2):
        rows.set_epoch(epoch)
        texts += [row["text"] for row in loader]
    assert sorted(texts) == [str(i) for i in range(8)]


def test_states_content(model, processor, make_clip, tmp_path):
    path = tmp_path / "clip.wav"
    rows = as_dataset([{"audio": {"bytes": None, "path": str(path)}}])
    found = []
    for seed in (0, 1):
        soundfile.write(path, make_clip(0.5, seed), 16_000)
        os.utime(path, (seed, seed))
        found.append(features.tower_states("audio", model.mmemo.audio_tower, processor, rows, tmp_path / "kept")[0])
    assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "audio,text,n",
    [
        (None, "bert", 4),
        (None, "roberta", 4),
        (None, "xlm-roberta", 4),
        ("ast", None, 4),
        (None, "distilbert", 4),
        (None, "gpt2", 2),
    ],
)
def test_lora(audio, text, n):
    model = make_model(audio, text)
    tower = model.mmemo.audio_tower or model.mmemo.text_tower
    found = lora_modules(tower, [])
    assert len(found) == n * tower.config.num_hidden_layers


def test_standardize_memory(model, processor, monkeypatch):
    alive = []
    most = []
    original = features.run_tower

    def run(*args):
        states, mask = original(*args)
        alive.extend(weakref.ref(layer) for layer in states)
        most.append(sum(ref() is not None for ref in alive))
        return states, mask

    stacked = []
    original_stack = torch.stack

    def stack(*args, **kw):
        out = original_stack(*args, **kw)
        stacked.append(weakref.ref(out))
        most.append(sum(ref() is not None for ref in stacked))
        return out

    monkeypatch.setattr(features, "run_tower", run)
    monkeypatch.setattr(torch, "stack", stack)
    target = {"labels": 0, "label_mask": torch.ones(4, dtype=torch.long)}
    features.standardize(model, ["text"], [{**target, "text": "i am happy"}] * 20, EmotionCollator(processor))
    assert max(most) < 10


@pytest.mark.parametrize(
    "flag", ["label_names labels", "remove_unused_columns false", "ddp_find_unused_parameters false"]
)
def test_flags(flag):
    with pytest.raises(ValueError, match="not used|unknown"):
        parse_arguments(f"--audio_encoder a --corpora meld --{flag}".split())
