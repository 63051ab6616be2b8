"""The generated code of a saved folder, and loading it in new processes with and without the package."""

import ast
import json
import os
import subprocess
import sys

import pytest
from elsewhere import ANSWER, WITHOUT_PACKAGE
from transformers.dynamic_module_utils import get_relative_imports

from modeling_mmemo.hub import remote_code as builder
from modeling_mmemo.hub.remote_code import remote_code, write_remote_code


LOAD_REMOTE_CODE = (
    "from transformers import pipeline\n"
    "emotion = pipeline('multimodal-emotion', model=FOLDER, trust_remote_code=True, device='cpu')\n"
)


def imports_of(source):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_every_relative_import_resolves_inside_the_folder(tmp_path):
    files = {path.name: path for path in write_remote_code(tmp_path)}

    for path in files.values():
        relative = {
            node.module
            for node in imports_of(path.read_text())
            if isinstance(node, ast.ImportFrom) and node.level == 1
        }
        assert {f"{module}.py" for module in relative} <= files.keys()
        # transformers finds the files to load with a regular expression.
        assert set(get_relative_imports(path)) == relative


def test_no_import_of_the_packages_is_left():
    for name, source in remote_code().items():
        for node in imports_of(source):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {"mmemo", "modeling_mmemo"} & {module.partition(".")[0] for module in modules}, name
            assert isinstance(node, ast.Import) or node.level <= 1, name


def test_only_import_lines_differ_from_the_source():
    files = remote_code()

    assert {"modeling_mmemo.py", "processing_mmemo.py", "multimodal_emotion.py", "mmemo_audio_loading.py"} <= set(
        files
    )
    with open(builder.find_spec("mmemo.audio.loading").origin, encoding="utf-8") as file:
        source = file.read().splitlines()
    changed = [
        (old, new) for old, new in zip(source, files["mmemo_audio_loading.py"].splitlines(), strict=True) if old != new
    ]
    assert all(old.startswith("from mmemo.") and new.startswith("from .mmemo_") for old, new in changed)


@pytest.fixture
def flatten(tmp_path, monkeypatch):
    """Flattens the module `probe.main` of a package written to disk, given as source code by path."""

    def flatten(**files):
        for name, source in {"__init__": "", "inner/__init__": "", **files}.items():
            path = tmp_path / "probe" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return remote_code(("probe.main",))

    monkeypatch.setattr(builder, "PACKAGES", ("probe",))
    monkeypatch.syspath_prepend(tmp_path)
    yield flatten
    remote_code.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "probe"]:
        del sys.modules[name]


def test_imports_are_flattened_recursively(flatten):
    main = "import os\nfrom probe.inner.part import (\n    X,\n)\n\n\ndef f():\n    from .other import Y\n"
    files = flatten(main=main, other="from .inner.part import X as Y\n", **{"inner/part": "X = 1\n"})

    assert files == {
        "probe_inner_part.py": "X = 1\n",
        "probe_main.py": main.replace("from probe.inner.part", "from .probe_inner_part").replace(
            "from .other", "from .probe_other"
        ),
        "probe_other.py": "from .probe_inner_part import X as Y\n",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import probe.other\n", r"main\.py:1: `import probe\.other` cannot be flattened; write `from probe\.other"),
        ("import os, probe.other as other\n", r"`import probe\.other` cannot be flattened"),
        ("from probe import other\n", "probe is a package or does not exist; import names from the module"),
        ("from . import other\n", "probe is a package or does not exist"),
        ("from probe.inner import x\n", r"probe\.inner is a package or does not exist"),
        ("from probe.nothing import x\n", r"probe\.nothing is a package or does not exist"),
        ("from \\\n    probe.other import x\n", r"main\.py:1: write `from probe\.other import` once, on one line"),
        ("from probe.other import x\nfrom probe.inner.part import y\n", None),
    ],
)
def test_imports_that_cannot_be_flattened_raise(flatten, source, message):
    files = {"main": source, "other": "x = 1\n", "inner/part": "y = 1\n"}
    if message is None:
        assert len(flatten(**files)) == 3
        return
    with pytest.raises(ValueError, match=message):
        flatten(**files)


def test_modules_with_the_same_file_name_raise(flatten):
    files = {"main": "from probe.a_b import x\nfrom probe.a.b import x as y\n", "a_b": "x = 1\n", "a/b": "x = 1\n"}

    with pytest.raises(ValueError, match=r"both become probe_a_b\.py; rename one of them"):
        flatten(**files, **{"a/__init__": ""})


@pytest.fixture(scope="module")
def folders(session_model, session_tokenizer, tmp_path_factory):
    """Folders of one model, saved in two ways."""
    from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, MultimodalEmotionPipeline

    folders = {name: tmp_path_factory.mktemp(name) for name in ("pipeline", "parts")}
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), session_tokenizer)
    session_model.save_pretrained(folders["parts"])
    processor.save_pretrained(folders["parts"])
    emotion = MultimodalEmotionPipeline(
        model=session_model, processor=processor, task="multimodal-emotion", device="cpu"
    )
    emotion.save_pretrained(folders["pipeline"])
    return folders


@pytest.fixture(scope="module")
def run(folders, example_audio, tmp_path_factory):
    """Runs a program in a new process; the last line that it prints is JSON."""
    # MKL chooses kernels by the alignment of memory unless it must be reproducible.
    environment = os.environ | {"MKL_CBWR": "COMPATIBLE", "HF_MODULES_CACHE": str(tmp_path_factory.mktemp("modules"))}

    def run(program, folder="pipeline"):
        names = f"FOLDER, CLIP = {str(folders[folder])!r}, {str(example_audio)!r}\n"
        command = [sys.executable, "-c", names + program]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def with_package(run):
    """Output of a process with the package, which must not run code of the folder."""
    load = (
        "from modeling_mmemo import pipeline\nemotion = pipeline('multimodal-emotion', model=FOLDER, device='cpu')\n"
    )
    output = run(load + ANSWER)
    assert output.pop("module") == "modeling_mmemo.modeling_mmemo"
    return output


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["pipeline", "parts"])
def test_without_the_package_the_logits_are_identical(run, with_package, folder):
    output = run(WITHOUT_PACKAGE + LOAD_REMOTE_CODE + ANSWER, folder)

    assert output.pop("module").startswith("transformers_modules.")
    assert output == with_package


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["pipeline", "parts"])
def test_without_the_package_auto_classes_load_the_folder(run, folder):
    loaded = run(
        WITHOUT_PACKAGE + "import json\n"
        "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification\n"
        "from transformers import AutoProcessor\n"
        "loaded = [auto.from_pretrained(FOLDER, trust_remote_code=True) for auto in (AutoConfig, AutoFeatureExtractor,"
        " AutoModel, AutoModelForAudioClassification, AutoProcessor)]\n"
        "print(json.dumps([type(value).__name__ for value in loaded]))",
        folder,
    )

    assert loaded == [
        "MMEmoConfig",
        "MMEmoFeatureExtractor",
        "MMEmoModel",
        "MMEmoForEmotionRecognition",
        "MMEmoProcessor",
    ]


@pytest.mark.slow
def test_without_the_package_a_loaded_folder_can_be_saved_again(run, with_package, tmp_path):
    again = str(tmp_path / "again")

    output = run(
        WITHOUT_PACKAGE
        + LOAD_REMOTE_CODE
        + f"emotion.save_pretrained({again!r})\n"
        + LOAD_REMOTE_CODE.replace("FOLDER", repr(again))
        + ANSWER
    )

    assert output.pop("module").startswith("transformers_modules.")
    assert output == with_package


@pytest.mark.slow
def test_without_the_package_a_timeline(run):
    timeline = run(
        WITHOUT_PACKAGE
        + LOAD_REMOTE_CODE
        + "import json\nprint(json.dumps(emotion(CLIP, return_timeline=True, voice_activity=False)['timeline']))"
    )

    assert len(timeline) >= 3 and all(segment["label"] for segment in timeline)
