"""Pushed to a Hub on loopback through the real client, and loaded from it in fresh processes."""

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
from huggingface_hub import ModelCard

from modeling_mmemo import load_pipeline
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.training_arguments import ModelArguments


REPO = "someone/emotion"


@pytest.fixture
def hub():
    with serve() as (hub, address):
        hub.address = address
        yield hub


@pytest.fixture
def folder(emotion, tmp_path):
    emotion.save_pretrained(tmp_path / "trained")
    (tmp_path / "trained" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    return tmp_path / "trained"


@pytest.fixture
def run(hub, tmp_path, example_audio):
    """Runs a program, or the command `mmemo`, in a fresh process that has never heard of the Hub before."""

    def run(*command, token=TOKEN):
        given = [sys.executable, "-m", "mmemo.cli", *map(str, command)]
        if len(command) == 1:
            names = f"REPO, CLIP = {REPO!r}, {str(example_audio)!r}\n"
            given = [sys.executable, "-c", names + command[0]]
        home = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | home | {"HF_TOKEN": token, "HF_MODULES_CACHE": str(tmp_path / "modules")}
        environment.pop("HF_HUB_OFFLINE")
        return subprocess.run(given, capture_output=True, text=True, env=environment)

    return run


def printed(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture
def expected(emotion, example_audio):
    return answer_of(emotion, example_audio)


def test_pushed_it_answers_anywhere(run, hub, folder, expected):
    result = run("push", folder, "--repo", REPO, "--private", "--tag", "v1.0")
    assert result.returncode == 0, result.stderr

    repository = hub.repositories[REPO]
    assert result.stdout.strip() == f"{hub.address}/{REPO}/commit/{repository['refs']['main']}"
    assert repository["private"] and repository["messages"] == ["Push model"]
    assert repository["tags"] == {"v1.0": repository["refs"]["main"]}
    files = hub.files(REPO)
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert files["README.md"] == (folder / "README.md").read_bytes()
    assert {"multimodal_emotion.py", "modeling_mmemo.py", "processor_config.json", "tokenizer.json"} <= files.keys()
    assert not [path for path in files if path.endswith((".bin", ".pt", ".pkl"))]

    load = "import pipeline\nemotion = pipeline('multimodal-emotion', model=REPO, device='cpu'"
    with_package = printed(run(f"from modeling_mmemo {load}, revision='v1.0')\n{ANSWER}"))
    without = printed(run(f"{WITHOUT_PACKAGE}from transformers {load}, trust_remote_code=True)\n{ANSWER}"))

    assert with_package.pop("module") == "modeling_mmemo.modeling_mmemo"
    assert without.pop("module").startswith("transformers_modules.")
    assert_same_answer(with_package, expected)
    assert_same_answer(without, expected)


def test_a_second_push_replaces_the_first_and_leaves_what_is_not_ours(run, hub, folder):
    assert run("push", folder, "--repo", REPO).returncode == 0
    first = hub.repositories[REPO]["refs"]["main"]
    hub.repositories[REPO]["commits"][first] |= {"old_mmemo.py": b"", "onnx/model.onnx": b"old", "photo.jpg": b"mine"}
    (folder / "README.md").write_text("# Another card\n")

    assert run("push", folder, "--repo", REPO).returncode == 0

    files = hub.files(REPO)
    assert files["README.md"] == b"# Another card\n" and files["photo.jpg"] == b"mine"
    assert not {"old_mmemo.py", "onnx/model.onnx"} & files.keys()
    assert hub.files(REPO, first).keys() > files.keys() - {"README.md"}


@pytest.mark.parametrize("fails", ["PUT /lfs", "POST .*/commit/"])
def test_a_push_that_fails_leaves_the_repository_as_it_was(run, hub, folder, fails):
    hub.create(REPO)
    before = hub.repositories[REPO]["refs"]["main"]
    hub.fail = fails

    result = run("push", folder, "--repo", REPO, "--tag", "v1.0")

    assert result.returncode == 1 and f"Error: The push to {REPO} broke off, and the repository is" in result.stderr
    assert hub.repositories[REPO]["refs"]["main"] == before and not hub.repositories[REPO]["tags"]
    hub.fail = None
    assert run("push", folder, "--repo", REPO, "--tag", "v1.0").returncode == 0
    assert "model.safetensors" in hub.files(REPO, "v1.0")


def test_pushing_takes_no_extras(hub, run, folder):
    program = f"""
import sys
from modeling_mmemo.hub.push import push
push({str(folder)!r}, REPO)
print(sorted({{"datasets", "evaluate", "sklearn", "onnx", "onnxruntime", "peft"}} & sys.modules.keys()))
"""
    result = run(program)

    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_branches_and_tags(run, hub, folder):
    assert run("push", folder, "--repo", REPO, "--revision", "next").returncode == 0
    assert "model.safetensors" in hub.files(REPO, "next") and not hub.files(REPO)

    assert run("push", folder, "--repo", REPO, "--tag", "v1.0").returncode == 0
    commits = len(hub.repositories[REPO]["commits"])
    result = run("push", folder, "--repo", REPO, "--tag", "v1.0")

    assert (result.returncode, len(hub.repositories[REPO]["commits"])) == (1, commits)
    assert f"{REPO} has a tag 'v1.0' already, and tags stay where they are; choose another." in result.stderr


def test_labels_and_their_order_are_a_promise(run, hub, folder):
    assert run("push", folder, "--repo", REPO).returncode == 0
    first = hub.repositories[REPO]["refs"]["main"]
    config = json.loads((folder / "config.json").read_text())
    labels = list(config["id2label"].values())
    config["id2label"] = dict(enumerate(labels[::-1]))
    config["label2id"] = {label: index for index, label in enumerate(labels[::-1])}
    (folder / "config.json").write_text(json.dumps(config))

    result = run("push", folder, "--repo", REPO)

    assert result.returncode == 1
    assert f"{REPO} answers {labels}, and the model {labels[::-1]}: whoever loads it" in result.stderr
    assert hub.repositories[REPO]["refs"]["main"] == first
    assert run("push", folder, "--repo", REPO, "--revision", "reversed").returncode == 0
    program = """
import json
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, load_pipeline
MMEmoProcessor.from_pretrained(REPO, revision="reversed")
configs = [load_pipeline(REPO, revision="reversed").model.config,
           MMEmoForEmotionRecognition.from_pretrained(REPO, revision="reversed").config,
           load_pipeline(REPO).model.config]
print(json.dumps([list(config.id2label.values()) for config in configs]))
"""
    assert printed(run(program)) == [labels[::-1], labels[::-1], labels]


def test_what_cannot_be_is_a_sentence(run, hub, folder, tmp_path):
    wrong_token = run("push", folder, "--repo", REPO, token="hf_wrong")
    assert wrong_token.returncode == 1 and "Error: " in wrong_token.stderr and "401" in wrong_token.stderr
    empty = run("push", tmp_path, "--repo", REPO)
    assert empty.returncode == 1 and "holds neither a model (config.json) nor an adapter" in empty.stderr
    without_results = run("push", folder, "--repo", REPO, "--results", tmp_path / "home")
    assert "holds no results; run eval.py" in without_results.stderr
    assert not hub.repositories

    hub.create(REPO)
    missing = run("from modeling_mmemo import load_pipeline\nload_pipeline(REPO, revision='v9')")
    assert missing.returncode == 1 and "v9" in missing.stderr


def test_with_graphs_and_results(run, hub, folder, example_audio, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(Path(__file__).parents[1] / "results" / "default" / "results.json", results)
    (results / "confusion-ravdess.png").write_bytes(b"a picture")
    (folder / "README.md").unlink()

    result = run("push", folder, "--repo", REPO, "--onnx", "--results", results, "--tag", "v1.0")

    assert result.returncode == 0, result.stderr
    files = hub.files(REPO)
    graphs = {path for path in files if path.startswith("onnx/")}
    assert graphs == {"onnx/model.onnx", "onnx/model_int8.onnx", "onnx/features.onnx", "onnx/features.safetensors"}
    assert {path for path in files if path.startswith("results/")} == {
        "results/results.json",
        "results/confusion-ravdess.png",
    }
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == REPO and f'model="{REPO}"' in card.text and len(card.data.eval_results) == 15
    text = "you are so sad"
    program = f"""
import json
from mmemo import EmotionPredictor
from modeling_mmemo import load_pipeline
print(json.dumps([EmotionPredictor(REPO, revision="v1.0")(CLIP, {text!r}),
                  load_pipeline(REPO, backend="onnx", revision="v1.0")({{"audio": CLIP, "text": {text!r}}})]))
"""
    answers = [{entry["label"]: entry["score"] for entry in answer} for answer in printed(run(program))]
    answer = load_pipeline(folder)({"audio": str(example_audio), "text": text})
    expected = {entry["label"]: entry["score"] for entry in answer}
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)
    assert answers[1] == pytest.approx(expected, abs=0.1)


def test_an_adapter_loads_back_onto_its_base(run, hub, folder, model, tmp_path):
    args = ModelArguments(audio_encoder="a", text_encoder="b", lora_dropout=0.0)
    trained = set_trainable(model, args, new_branches=("audio", "text")).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    input_ids = torch.tensor([[2, 5, 6, 3]])
    expected = trained(input_ids=input_ids).logits.tolist()

    result = run("push", tmp_path / "adapter", "--repo", REPO)

    assert result.returncode == 0, result.stderr
    assert hub.files(REPO).keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    program = f"""
import json, torch
from peft import PeftModel
from modeling_mmemo import MMEmoForEmotionRecognition
model = PeftModel.from_pretrained(MMEmoForEmotionRecognition.from_pretrained({str(folder)!r}), REPO).eval()
print(json.dumps(model(input_ids=torch.tensor({input_ids.tolist()})).logits.tolist()))
"""
    assert printed(run(program))[0] == pytest.approx(expected[0], rel=1e-6)


@pytest.mark.parametrize("part", ["model", "processor", "emotion"])
def test_push_to_hub_of_each_part(run, hub, folder, part):
    program = f"""
from modeling_mmemo import load_pipeline
emotion = load_pipeline({str(folder)!r}, device="cpu")
{{"model": emotion.model, "processor": emotion.processor, "emotion": emotion}}[{part!r}].push_to_hub(REPO)
"""
    result = run(program)

    assert result.returncode == 0, result.stderr
    expected = {
        "model": {"model.safetensors", "config.json", "modeling_mmemo.py", "towers_mmemo.py"},
        "processor": {"processor_config.json", "tokenizer.json", "processing_mmemo.py", "mmemo_audio_loading.py"},
        "emotion": {"multimodal_emotion.py", "model.safetensors", "modeling_mmemo.py", "processing_mmemo.py"},
    }
    assert expected[part] <= hub.files(REPO).keys()
