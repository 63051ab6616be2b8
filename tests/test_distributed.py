"""Training with two processes, started by accelerate, gives the same model as one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file
from tiny import (
    AUDIO_ONLY,
    BOTH,
    SIZES,
    TEXT_ONLY,
    TOKENS,
    WHISPER,
    audio_inputs,
    make_model,
    text_inputs,
)
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel

import train
from modeling_mmemo import MMEmoForEmotionRecognition
from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.data.sources import read_source
from modeling_mmemo.training.rows import EmotionRows, LikeBatches


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
LAUNCH += ["--config_file", "configs/accelerate/ddp_cpu.yaml"]
# All runs in one launch, because importing takes longer than training.
SCRIPT = "import json, sys, train\nfor argv in json.loads(sys.argv[1]):\n    train.main(argv)\n"
# One step of the plain Trainer in which the first process has clips only, and the second one texts only.
PLAIN_SCRIPT = """
import sys
from transformers import Trainer, TrainingArguments
from test_distributed import one_modality_model, one_modality_rows, stack
options = dict(output_dir=sys.argv[1], use_cpu=True, max_steps=1, per_device_train_batch_size=2, report_to="none")
options |= dict(optim="sgd", learning_rate=0.1, max_grad_norm=0, lr_scheduler_type="constant", ddp_timeout=60)
options |= dict(train_sampling_strategy="sequential", activation_checkpointing=True, remove_unused_columns=False)
args = TrainingArguments(label_names=["labels"], **options)
trainer = Trainer(one_modality_model(), args, stack, one_modality_rows())
trainer.train()
trainer.save_model()
"""
BATCH_SIZE = 2
# A letter per row (audio, text, both) and a string per batch: one for each of the two processes.
STEPS = [("aa", "tt"), ("tt", "aa"), ("bb", "aa"), ("at", "bt")]
DEV = "aaatttbb"
WORDS = {"angry": "wait !", "happy": "i am happy", "sad": "i am sad"}

RUNS = {
    "full": {"audio_mode": "full", "text_mode": "full", "train_sampling_strategy": "sequential"},
    "adapted": {"audio_mode": "lora", "text_mode": "lora", "lora_dropout": 0, "activation_checkpointing": "true"},
    "copies": {
        "audio_mode": "frozen",
        "text_mode": "frozen",
        "train_sampling_strategy": "sequential",
        "fusion": "late",
        "audio_layer_mix": "concat",
        "augmented_copies": 2,
        "noise_probability": 1.0,
        "class_weights": "corpus",
    },
    "streamed": {"audio_mode": "full", "text_mode": "full", "streaming": "true", "max_steps": 2 * len(STEPS)},
}
# The order of batches depends on the batch size; processes take batches in turn, as gradient accumulation does.
SAME_ROWS = {
    "full": {"per_device_train_batch_size": 2 * BATCH_SIZE},
    "adapted": {"gradient_accumulation_steps": 2},
    "copies": {"per_device_train_batch_size": 2 * BATCH_SIZE},
    "streamed": {"per_device_train_batch_size": 2 * BATCH_SIZE},
}
OPTIONS = {
    "per_device_train_batch_size": BATCH_SIZE,
    "fusion_hidden_size": 16,
    "fusion_dropout": 0,
    # Adam would amplify gradients that are rounding errors to full steps.
    "optim": "sgd",
    "learning_rate": 0.1,
    "head_learning_rate": 0.1,
    "warmup_steps": 0,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2 * len(STEPS),
    "report_to": "none",
    "use_cpu": "true",
    # Seconds that a process waits for the other.
    "ddp_timeout": 60,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory, session_tokenizer, make_clip):
    """Options with two tiny encoders and a table whose rows are in the order of `STEPS`."""
    folder = tmp_path_factory.mktemp("sources")
    whisper = {**WHISPER, **TOKENS, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    WhisperModel(WhisperConfig(**whisper, pad_token_id=0, decoder_start_token_id=3)).save_pretrained(folder / "audio")
    bert = {**SIZES, "vocab_size": len(session_tokenizer), "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    BertModel(BertConfig(**bert)).save_pretrained(folder / "text")
    session_tokenizer.save_pretrained(folder / "text")

    train_kinds = "".join(kinds for step in STEPS for kinds in step)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as table:
        splits = ["train"] * len(train_kinds) + ["dev"] * len(DEV)
        for index, (kind, split) in enumerate(zip(train_kinds + DEV, splits)):
            soundfile.write(folder / f"{index}.wav", make_clip(0.3 + 0.02 * index, seed=index), 16_000)
            label, text = list(WORDS.items())[index % len(WORDS)]
            row = {
                "audio": None if kind == "t" else f"{index}.wav",
                "text": None if kind == "a" else text,
                "label": label,
                "speaker": f"{split} {index}",
                "split": split,
            }
            table.write(json.dumps(row) + "\n")
    return {"audio_encoder": folder / "audio", "text_encoder": folder / "text", "corpora": folder / "rows.jsonl"}


def arguments(sources, folder, **options):
    options = {**sources, **OPTIONS, "output_dir": folder / "model", "cache_dir": folder / "features", **options}
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def launch(script, argument, timeout=300):
    """Runs a script in two processes, and ends them after `timeout` seconds."""
    process = subprocess.Popen(
        [*LAUNCH, str(script), argument],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "tests"]), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # it ends its two processes in turn
        output, _ = process.communicate()
    assert process.returncode == 0, output[-5000:]


@pytest.fixture(scope="module")
def launched(sources, tmp_path_factory):
    """The output folder of all `RUNS`, each with two processes."""
    folder = tmp_path_factory.mktemp("together")
    script = folder / "script.py"
    script.write_text(SCRIPT)
    runs = [arguments(sources, folder / name, **options) for name, options in RUNS.items()]
    launch(script, json.dumps(runs))
    return folder


def run_alone(name, sources, folder):
    train.main(arguments(sources, folder, **{**RUNS[name], **SAME_ROWS[name]}))
    return folder / "model"


@pytest.fixture(scope="module", params=["full", "adapted", "copies"])
def runs(request, sources, launched, tmp_path_factory):
    """The output folders of a run with two processes, and of one process with the same rows in every step."""
    alone = run_alone(request.param, sources, tmp_path_factory.mktemp("alone"))
    return launched / request.param / "model", alone


def losses(folder):
    state = json.loads((folder / f"checkpoint-{2 * len(STEPS)}" / "trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_process_may_have_a_batch_without_a_modality(sources, processor):
    table = read_source(str(sources["corpora"]), ".")
    rows = EmotionRows(table, range(BATCH_SIZE * 2 * len(STEPS)), EMOTIONS, states={}, processor=processor)

    kinds = [rows.kind_of(index) for index in LikeBatches(rows, BATCH_SIZE, seed=42, by_length=True)]

    batches = [kinds[start : start + BATCH_SIZE] for start in range(0, len(kinds), BATCH_SIZE)]
    present = [tuple(any(modality) for modality in zip(*batch)) for batch in batches]
    assert any(first != second for first, second in zip(present[::2], present[1::2]))


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(runs):
    together, alone = map(losses, runs)

    assert len(together) == 2 * len(STEPS)
    assert together == pytest.approx(alone, abs=1e-5)
    assert sum(together[len(STEPS) :]) < sum(together[: len(STEPS)])


@pytest.mark.slow
def test_two_processes_have_the_weights_of_one(runs):
    together, alone = (load_file(folder / "model.safetensors") for folder in runs)

    assert together.keys() == alone.keys()
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_save_a_complete_model(runs):
    model = MMEmoForEmotionRecognition.from_pretrained(runs[0])

    assert model.missing_keys_on_load == ()


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(runs):
    together, alone = (json.loads((folder / "eval_results.json").read_text()) for folder in runs)

    scores = [name for name in alone if name.endswith(("_wa", "_uar"))]
    assert len(scores) == 7  # those of audio, text and both, and the mean UAR
    assert {name: together[name] for name in scores} == pytest.approx({name: alone[name] for name in scores})


@pytest.mark.slow
def test_two_processes_share_a_stream(sources, launched, tmp_path):
    alone = losses(run_alone("streamed", sources, tmp_path))

    assert losses(launched / "streamed" / "model") == pytest.approx(alone, abs=1e-5)


def one_modality_model():
    """A model without anything random in training."""
    model = make_model(fusion_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.text_config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    return model


def one_modality_rows():
    """Two rows that have only audio, then two that have only text."""
    audio, text, labels = audio_inputs(), text_inputs(), torch.arange(4)
    clips = [{name: values[row] for name, values in audio.items()} for row in (BOTH, AUDIO_ONLY)]
    texts = [{name: values[row] for name, values in text.items()} for row in (BOTH, TEXT_ONLY)]
    return [{**row, "labels": label} for row, label in zip(clips + texts, labels)]


def stack(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow
def test_the_plain_trainer_does_not_wait_for_a_missing_modality(tmp_path):
    """With activation checkpointing it does not tell DDP to look for unused parameters."""
    script = tmp_path / "script.py"
    script.write_text(PLAIN_SCRIPT)
    rows = one_modality_rows()
    alone = one_modality_model().train()
    loss = sum(alone(**stack(batch)).loss for batch in (rows[:2], rows[2:])) / 2
    loss.backward()

    launch(script, str(tmp_path / "model"), timeout=120)

    together = load_file(tmp_path / "model" / "model.safetensors")
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            expected = parameter if parameter.grad is None else parameter - 0.1 * parameter.grad
            torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-5, msg=name)
