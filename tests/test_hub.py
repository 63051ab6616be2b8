"""Pushes to a Hub on loopback through the real client, and loads from it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from elsewhere import ANSWER, WITHOUT_PACKAGE, answer_of, assert_same_answer
from hub_server import TOKEN, serve
from huggingface_hub import ModelCard, constants, hf_api
from transformers.utils import hub as transformers_hub
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, load_pipeline
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.training_arguments import ModelArguments


REPO = "someone/emotion"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback, and the Hub client of this process connected to it."""
    with serve() as (hub, address):
        hub.address = address
        settings = {
            "ENDPOINT": address,
            "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in settings.items():
            assert hasattr(constants, name)
            monkeypatch.setattr(constants, name, value)
        # The clients that are created once per process.
        monkeypatch.setattr(hf_api.api, "endpoint", address)
        monkeypatch.setattr(transformers_hub, "_hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def folder(emotion, tmp_path):
    emotion.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return tmp_path / "trained"


@pytest.fixture
def push(hub):
    """Runs `mmemo push` in this process."""
    return lambda *arguments: CliRunner().invoke(app, ["push", *map(str, arguments)])


@pytest.fixture
def run(hub, tmp_path, example_audio):
    """Runs a program in a new process with an empty Hub cache; the last line that it prints is JSON."""

    def run(program):
        home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "process"), "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | home | {"HF_TOKEN": TOKEN, "HF_MODULES_CACHE": str(tmp_path / "modules")}
        environment.pop("HF_HUB_OFFLINE")
        names = f"REPO, CLIP = {REPO!r}, {str(example_audio)!r}\n"
        command = [sys.executable, "-c", names + program]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


def test_a_pushed_model_loads_without_the_package(push, run, hub, folder, emotion, example_audio):
    result = push(folder, "--repo", REPO, "--private", "--tag", "v1.0")
    assert result.exit_code == 0, result.stderr

    repository = hub.repositories[REPO]
    assert result.stdout.strip() == f"{hub.address}/{REPO}/commit/{repository['refs']['main']}"
    assert repository["private"] and repository["messages"] == ["Push model"]
    assert repository["tags"] == {"v1.0": repository["refs"]["main"]}
    files = hub.files(REPO)
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert {"multimodal_emotion.py", "modeling_mmemo.py", "processor_config.json", "tokenizer.json"} <= files.keys()
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pkl"))]

    output = run(
        WITHOUT_PACKAGE
        + "from transformers import pipeline\n"
        + "emotion = pipeline('multimodal-emotion', model=REPO, device='cpu', trust_remote_code=True)\n"
        + ANSWER
    )
    assert output.pop("module").startswith("transformers_modules.")
    assert_same_answer(output, answer_of(emotion, example_audio))


@pytest.mark.slow
def test_a_pushed_model_loads_with_the_package(push, run, folder, emotion, example_audio):
    assert push(folder, "--repo", REPO, "--tag", "v1.0").exit_code == 0

    output = run(
        "from modeling_mmemo import pipeline\n"
        "emotion = pipeline('multimodal-emotion', model=REPO, device='cpu', revision='v1.0')\n" + ANSWER
    )

    assert output.pop("module") == "modeling_mmemo.modeling_mmemo"
    assert_same_answer(output, answer_of(emotion, example_audio))


def test_a_second_push_replaces_the_first_and_keeps_other_files(push, hub, folder):
    assert push(folder, "--repo", REPO).exit_code == 0
    first = hub.repositories[REPO]["refs"]["main"]
    hub.repositories[REPO]["commits"][first] |= {"old_mmemo.py": b"", "onnx/model.onnx": b"old", "photo.jpg": b"mine"}
    (folder / "README.md").write_text("# Another card\n")

    assert push(folder, "--repo", REPO).exit_code == 0

    files = hub.files(REPO)
    assert files["README.md"] == b"# Another card\n" and files["photo.jpg"] == b"mine"
    assert not {"old_mmemo.py", "onnx/model.onnx"} & files.keys()
    assert hub.files(REPO, first).keys() > files.keys() - {"README.md"}


@pytest.mark.parametrize("fails", ["PUT /lfs", "POST .*/commit/"])
def test_a_failed_push_leaves_the_repository_unchanged(push, hub, folder, fails):
    hub.create(REPO)
    before = hub.repositories[REPO]["refs"]["main"]
    hub.fail = fails

    result = push(folder, "--repo", REPO, "--tag", "v1.0")

    assert result.exit_code == 1 and f"Error: The push to {REPO} failed, and the repository is" in result.stderr
    assert hub.repositories[REPO]["refs"]["main"] == before and not hub.repositories[REPO]["tags"]
    hub.fail = None
    assert push(folder, "--repo", REPO, "--tag", "v1.0").exit_code == 0
    assert "model.safetensors" in hub.files(REPO, "v1.0")


@pytest.mark.slow
def test_pushing_needs_no_extras(run, folder):
    extras = run(f"""
import json, sys
from modeling_mmemo.hub.push import push
push({str(folder)!r}, REPO)
print(json.dumps(sorted({{"datasets", "evaluate", "sklearn", "onnx", "onnxruntime", "peft"}} & sys.modules.keys())))
""")

    assert extras == []


def test_branches_and_tags(push, hub, folder):
    assert push(folder, "--repo", REPO, "--revision", "next").exit_code == 0
    assert "model.safetensors" in hub.files(REPO, "next") and not hub.files(REPO)

    assert push(folder, "--repo", REPO, "--tag", "v1.0").exit_code == 0
    commits = len(hub.repositories[REPO]["commits"])
    result = push(folder, "--repo", REPO, "--tag", "v1.0")

    assert (result.exit_code, len(hub.repositories[REPO]["commits"])) == (1, commits)
    assert f"{REPO} already has a tag 'v1.0', and tags cannot be moved; choose another." in result.stderr


def test_other_labels_raise(push, hub, folder):
    assert push(folder, "--repo", REPO).exit_code == 0
    first = hub.repositories[REPO]["refs"]["main"]
    config = json.loads((folder / "config.json").read_text())
    labels = list(config["id2label"].values())
    config["id2label"] = dict(enumerate(labels[::-1]))
    config["label2id"] = {label: index for index, label in enumerate(labels[::-1])}
    (folder / "config.json").write_text(json.dumps(config))

    result = push(folder, "--repo", REPO)

    assert result.exit_code == 1
    assert f"The labels of {REPO} are {labels}, but the model has {labels[::-1]}: code that uses" in result.stderr
    assert hub.repositories[REPO]["refs"]["main"] == first
    assert push(folder, "--repo", REPO, "--revision", "reversed").exit_code == 0
    MMEmoProcessor.from_pretrained(REPO, revision="reversed")
    configs = [
        load_pipeline(REPO, revision="reversed").model.config,
        MMEmoForEmotionRecognition.from_pretrained(REPO, revision="reversed").config,
        load_pipeline(REPO).model.config,
    ]
    assert [list(config.id2label.values()) for config in configs] == [labels[::-1], labels[::-1], labels]


def test_errors_are_readable(push, hub, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    empty = push(tmp_path / "empty", "--repo", REPO)
    assert empty.exit_code == 1 and "has neither a model (config.json) nor an adapter" in empty.stderr
    without_results = push(folder, "--repo", REPO, "--results", tmp_path / "empty")
    assert "has no results; run eval.py" in without_results.stderr
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        wrong_token = push(folder, "--repo", REPO)
    assert wrong_token.exit_code == 1 and "Error: " in wrong_token.stderr and "401" in wrong_token.stderr
    assert not hub.repositories

    hub.create(REPO)
    with pytest.raises(OSError, match="v9"):
        load_pipeline(REPO, revision="v9")


@pytest.fixture
def results(tmp_path):
    """An output folder of `eval.py`."""
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[1] / "results" / "default" / "results.json", folder)
    (folder / "confusion-ravdess.png").write_bytes(b"a picture")
    return folder


def test_results_are_pushed_with_a_card(push, hub, folder, results):
    (folder / "README.md").unlink()

    result = push(folder, "--repo", REPO, "--results", results)

    assert result.exit_code == 0, result.stderr
    files = hub.files(REPO)
    assert {path for path in files if path.startswith("results/")} == {
        "results/results.json",
        "results/confusion-ravdess.png",
    }
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == REPO and f'model="{REPO}"' in card.text and len(card.data.eval_results) == 15


@pytest.mark.slow
def test_graphs_are_pushed_and_run(push, hub, folder, example_audio):
    result = push(folder, "--repo", REPO, "--onnx", "--tag", "v1.0")

    assert result.exit_code == 0, result.stderr
    graphs = {path for path in hub.files(REPO) if path.startswith("onnx/")}
    assert graphs == {"onnx/model.onnx", "onnx/model_int8.onnx", "onnx/features.safetensors"}
    text = "you are so sad"
    item = {"audio": str(example_audio), "text": text}
    outputs = (
        EmotionPredictor(REPO, revision="v1.0")(str(example_audio), text),
        load_pipeline(REPO, backend="onnx", revision="v1.0")(item),
        load_pipeline(folder)(item),
    )
    predictor, onnx, expected = ({entry["label"]: entry["score"] for entry in output} for output in outputs)
    assert predictor == pytest.approx(onnx, abs=1e-3)
    assert onnx == pytest.approx(expected, abs=0.1)


def test_an_adapter_loads_onto_its_base_model(push, hub, folder, model, tmp_path):
    from peft import PeftModel

    args = ModelArguments(audio_encoder="a", text_encoder="b", lora_dropout=0.0)
    trained = set_trainable(model, args, new_branches=("audio", "text")).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    input_ids = torch.tensor([[2, 5, 6, 3]])
    expected = trained(input_ids=input_ids).logits

    result = push(tmp_path / "adapter", "--repo", REPO)

    assert result.exit_code == 0, result.stderr
    assert hub.files(REPO).keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    loaded = PeftModel.from_pretrained(MMEmoForEmotionRecognition.from_pretrained(folder), REPO).eval()
    torch.testing.assert_close(loaded(input_ids=input_ids).logits, expected, rtol=1e-6, atol=0)


def test_an_adapter_cannot_be_exported(push, hub, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")

    result = push(tmp_path, "--repo", REPO, "--onnx")

    assert result.exit_code == 1 and "is an adapter, which cannot be exported; leave onnx out" in result.stderr
    assert not hub.repositories


@pytest.mark.parametrize("part", ["model", "processor", "emotion"])
def test_push_to_hub_of_each_part(hub, emotion, part):
    {"model": emotion.model, "processor": emotion.processor, "emotion": emotion}[part].push_to_hub(REPO)

    expected = {
        "model": {"model.safetensors", "config.json", "modeling_mmemo.py", "towers_mmemo.py"},
        "processor": {"processor_config.json", "tokenizer.json", "processing_mmemo.py", "mmemo_audio_loading.py"},
        "emotion": {"multimodal_emotion.py", "model.safetensors", "modeling_mmemo.py", "processing_mmemo.py"},
    }
    files = hub.files(REPO)
    assert expected[part] <= files.keys()
    assert b"from .mmemo_" in files["processing_mmemo.py"]
