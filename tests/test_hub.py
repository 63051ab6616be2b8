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
from transformers import AutoModelForAudioClassification
from transformers.utils import hub as transformers_hub
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, load_pipeline, pipeline
from modeling_mmemo.exporters import export_command
from modeling_mmemo.pipelines import DEFAULT_MODEL
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model
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


@pytest.mark.slow
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
    absent = push(tmp_path / "absent", "--repo", REPO)
    assert f"Error: The folder {tmp_path / 'absent'} does not exist; pass the output folder of" in absent.stderr
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
    assert card.data.model_name == REPO and f'model="{REPO}"' in card.text and len(card.data.eval_results) == 18


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


@pytest.fixture
def make_adapter(tmp_path, folder):
    """Trains an adapter on a base model, by default on `folder`, with labels of its own; returns its folder."""

    def make(base=folder, labels=("sad", "happy", "angry")):
        args = ModelArguments(model_name_or_path=str(base), lora_dropout=0.0)
        model, processor, new_branches = build_model(args, labels)
        trained = set_trainable(model, args, new_branches)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.config.temperature = {"text": 0.5, "audio": 3.0}
        trained.save_pretrained(tmp_path / "adapter")
        processor.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return make


def predict(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[2, 5, 6, 3]])).logits


def assert_no_local_paths(files, *paths):
    for name, content in files.items():
        for path in (*map(str, paths), str(Path.home()), str(Path(__file__).parents[1])):
            assert path.encode() not in content, (name, path)


@pytest.mark.slow
def test_a_pushed_adapter_is_the_model_it_came_from(push, hub, folder, make_adapter, tmp_path):
    from peft import PeftModel

    adapter = make_adapter()
    expected = predict(MMEmoForEmotionRecognition.from_pretrained(adapter))
    assert push(folder, "--repo", "someone/base").exit_code == 0

    result = push(adapter, "--repo", REPO, "--base", "someone/base", "--tag", "v1.0")

    assert result.exit_code == 0, result.stderr
    files = hub.files(REPO)
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "processor_config.json"} < files.keys()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "someone/base"
    assert_no_local_paths(files, tmp_path)
    shutil.rmtree(folder)
    shutil.rmtree(adapter)
    loaded = {
        "class": MMEmoForEmotionRecognition.from_pretrained(REPO, revision="v1.0"),
        "auto class": AutoModelForAudioClassification.from_pretrained(REPO),
        "pipeline": pipeline("multimodal-emotion", model=REPO).model,
        "load_pipeline": load_pipeline(REPO, revision="v1.0").model,
    }
    for name, model in loaded.items():
        assert list(model.config.id2label.values()) == ["sad", "happy", "angry"], name
        assert model.config.temperature == {"text": 0.5, "audio": 3.0}, name
        torch.testing.assert_close(predict(model), expected, rtol=0, atol=1e-5, msg=name)
    # As the card says.
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == ["someone/base"] and card.data.license == "apache-2.0"
    assert "with 3 labels: sad, happy, angry. It was trained on [someone/base](" in card.text
    code = card.text.split("```python\n")[2].split("```")[0]
    variables = {}
    exec(code, variables)
    assert isinstance(variables["model"], PeftModel)
    torch.testing.assert_close(predict(variables["model"]), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_pushed_adapter_loads_without_the_package(push, run, folder, make_adapter, example_audio):
    adapter = make_adapter()
    expected = answer_of(load_pipeline(adapter), example_audio)
    assert push(folder, "--repo", "someone/base").exit_code == 0
    assert push(adapter, "--repo", REPO, "--base", "someone/base").exit_code == 0

    output = run(
        WITHOUT_PACKAGE
        + "ABSENT.remove('peft')\n"
        + "from transformers import pipeline\n"
        + "emotion = pipeline('multimodal-emotion', model=REPO, device='cpu', trust_remote_code=True)\n"
        + ANSWER
    )

    assert output.pop("module").startswith("transformers_modules.")
    assert_same_answer(output, expected)


@pytest.mark.slow
def test_a_pushed_adapter_of_the_embedded_model_names_and_licenses_it(push, hub, make_adapter, tmp_path):
    adapter = make_adapter(DEFAULT_MODEL)
    expected = predict(MMEmoForEmotionRecognition.from_pretrained(adapter))

    result = push(adapter, "--repo", REPO)

    assert result.exit_code == 0, result.stderr
    files = hub.files(REPO)
    assert_no_local_paths(files, tmp_path, DEFAULT_MODEL)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "mmemo-embedded"
    assert files["LICENSE.md"] == (Path(DEFAULT_MODEL) / "LICENSE.md").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "cc-by-nc-sa-4.0" and card.data.base_model is None
    assert "It was trained on the embedded model of mmemo." in card.text
    torch.testing.assert_close(predict(load_pipeline(REPO).model), expected, rtol=0, atol=1e-5)


def test_an_adapter_of_a_local_base_needs_a_public_name(push, hub, folder, make_adapter):
    result = push(make_adapter(), "--repo", REPO)

    assert result.exit_code == 1 and not hub.repositories
    assert (
        f"was trained on {folder}, a local folder that others do not have: push that model and pass its name as"
        in (result.stderr)
    )
    other = push(folder, "--repo", REPO, "--base", "someone/base")
    assert f"base=someone/base is the base model of an adapter, but {folder} is not an adapter" in other.stderr


@pytest.mark.slow
def test_an_adapter_of_earlier_versions_is_pushed_without_its_local_path(push, hub, make_adapter, tmp_path):
    """They have the path of their base model, and the empty card of peft."""
    adapter = make_adapter(DEFAULT_MODEL)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": DEFAULT_MODEL, "revision": None}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "README.md").write_text(f"---\nbase_model: {DEFAULT_MODEL}\n---\n# Model Card for Model ID\n")

    assert push(adapter, "--repo", REPO).exit_code == 0

    assert_no_local_paths(hub.files(REPO), tmp_path, DEFAULT_MODEL)
    (adapter / "config.json").unlink()
    result = push(adapter, "--repo", REPO)
    assert result.exit_code == 1 and "has no config.json with the labels and temperatures of the" in result.stderr


@pytest.mark.slow
def test_results_are_written_to_the_card_of_an_adapter(push, hub, make_adapter, results, tmp_path):
    adapter = make_adapter(DEFAULT_MODEL)
    evaluated = json.loads((results / "results.json").read_text()) | {"model": str(adapter)}
    (results / "results.json").write_text(json.dumps(evaluated))
    (results / "report.md").write_text(f"# Evaluation of {adapter}\n")

    result = push(adapter, "--repo", REPO, "--results", results)

    assert result.exit_code == 0, result.stderr
    files = hub.files(REPO)
    assert_no_local_paths(files, tmp_path)
    assert json.loads(files["results/results.json"])["model"] == REPO
    card = ModelCard(files["README.md"].decode())
    assert "## Results" in card.text and len(card.data.eval_results) == 18


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_dry_run_lists_the_files_without_the_hub(push, hub, folder, make_adapter, kind, monkeypatch):
    source = folder if kind == "model" else make_adapter(DEFAULT_MODEL)
    before = sorted(source.rglob("*"))
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        result = push(source, "--repo", REPO, "--revision", "next", "--dry-run")

    assert result.exit_code == 0, result.stderr
    assert not hub.requests and not hub.repositories and sorted(source.rglob("*")) == before
    *lines, total = result.stdout.splitlines()
    assert f" files would be pushed to {REPO}, branch next." in total
    assert push(source, "--repo", REPO, "--revision", "next").exit_code == 0
    files = hub.files(REPO, "next")
    assert {line.split()[2] for line in lines} == files.keys()
    weights = "model.safetensors" if kind == "model" else "adapter_model.safetensors"
    assert f"{len(files[weights]) / 1e6:10.3f} MB  {weights}" in lines


@pytest.mark.slow
def test_a_dry_run_with_graphs_exports_them(push, hub, folder):
    result = push(folder, "--repo", REPO, "--onnx", "--dry-run")

    assert "onnx/model_int8.onnx" in result.stdout and not hub.requests


@pytest.fixture
def no_export(monkeypatch):
    def fail(*_):
        raise AssertionError("exported before the checks")

    monkeypatch.setattr(export_command, "export_graphs", fail)


@pytest.mark.slow
def test_the_token_and_the_repository_are_checked_before_an_export(push, hub, folder, no_export, monkeypatch):
    def error(*arguments):
        result = push(folder, "--repo", REPO, "--onnx", *arguments)
        # Before it there is only the progress of loading.
        _, message = result.stderr.rstrip("\n").rsplit("\n", 1)
        assert result.exit_code == 1 and message.startswith("Error: ")
        return message

    hub.fail = "POST /api/repos/create"
    assert f"The token may not create or change {REPO} (403): use a token with write access to it." in error()
    hub.fail = None
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_wrong")
        assert f"The Hub at {hub.address} rejected the token (401): run `hf auth login` again, or" in error()
        patch.delenv("HF_TOKEN")
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
        assert "Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN." in error()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "cannot be reached (HF_HUB_OFFLINE is set); push again online." in error()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
        assert "The Hub at http://127.0.0.1:9 cannot be reached (" in error()
    assert not hub.repositories
    hub.create(REPO)
    hub.repositories[REPO]["tags"]["v1.0"] = hub.repositories[REPO]["refs"]["main"]
    assert f"{REPO} already has a tag 'v1.0'" in error("--tag", "v1.0")


def test_a_token_that_only_reads_is_refused(push, hub, folder, no_export, monkeypatch):
    user = {"name": "someone", "auth": {"accessToken": {"role": "read"}}}
    monkeypatch.setattr(hf_api.HfApi, "whoami", lambda self: user)

    result = push(folder, "--repo", REPO, "--onnx")

    assert "The token of someone can only read; create one with write access at" in result.stderr
    assert not hub.repositories


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
