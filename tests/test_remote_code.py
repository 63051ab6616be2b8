"""What is saved loads where the package is, and where it is not, in fresh processes."""

import json
import os
import subprocess
import sys

import pytest
from elsewhere import ANSWER, WITHOUT_PACKAGE, answer_of, assert_same_answer


@pytest.fixture
def folder(emotion, tmp_path):
    emotion.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def run(folder, example_audio, tmp_path):
    """Runs a program in a fresh process; what it prints last is JSON."""

    def run(program):
        names = f"FOLDER, CLIP = {str(folder)!r}, {str(example_audio)!r}\n"
        result = subprocess.run(
            [sys.executable, "-c", names + program],
            capture_output=True,
            text=True,
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture
def expected(emotion, example_audio):
    return answer_of(emotion, example_audio)


def test_with_the_package_no_code_of_the_folder_runs(run, expected):
    """Nor is leave asked to run it, though the folder names a pipeline of its own."""
    found = run(
        "from modeling_mmemo import pipeline\nemotion = pipeline('multimodal-emotion', model=FOLDER, device='cpu')\n"
        + ANSWER
    )

    assert found.pop("module") == "modeling_mmemo.modeling_mmemo"
    assert_same_answer(found, expected)


def test_without_the_package_the_folder_brings_all_code(run, expected):
    found = run(
        WITHOUT_PACKAGE + "from transformers import pipeline\n"
        "emotion = pipeline('multimodal-emotion', model=FOLDER, trust_remote_code=True, device='cpu')\n" + ANSWER
    )

    assert found.pop("module").startswith("transformers_modules.")
    assert_same_answer(found, expected)


def test_without_the_package_auto_classes_load_the_folder(run):
    found = run(
        WITHOUT_PACKAGE + "import json\n"
        "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification\n"
        "from transformers import AutoProcessor\n"
        "loaded = [auto.from_pretrained(FOLDER, trust_remote_code=True) for auto in (AutoConfig, AutoFeatureExtractor,"
        " AutoModel, AutoModelForAudioClassification, AutoProcessor)]\n"
        "print(json.dumps([type(value).__name__ for value in loaded]))"
    )

    assert found == [
        "MMEmoConfig",
        "MMEmoFeatureExtractor",
        "MMEmoModel",
        "MMEmoForEmotionRecognition",
        "MMEmoProcessor",
    ]


def test_loaded_by_its_own_code_it_can_be_saved_again(run, expected, tmp_path):
    again = str(tmp_path / "again")
    load = "emotion = pipeline('multimodal-emotion', model={}, trust_remote_code=True, device='cpu')\n"

    found = run(
        WITHOUT_PACKAGE
        + "from transformers import pipeline\n"
        + load.format("FOLDER")
        + f"emotion.save_pretrained({again!r})\n"
        + load.format(repr(again))
        + ANSWER
    )

    assert found.pop("module").startswith("transformers_modules.")
    assert_same_answer(found, expected)


def test_a_timeline_without_the_package(run, folder):
    """What takes another package says so; the rest works."""
    found = run(
        WITHOUT_PACKAGE + "import json\nfrom transformers import pipeline\n"
        "emotion = pipeline('multimodal-emotion', model=FOLDER, trust_remote_code=True, device='cpu')\n"
        "print(json.dumps(emotion(CLIP, return_timeline=True, voice_activity=False)['timeline']))"
    )

    assert len(found) >= 3 and all(segment["label"] for segment in found)
