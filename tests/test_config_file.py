import pytest

from modeling_mmemo.data.config_file import read_config


@pytest.fixture
def write(tmp_path):
    """Writes configuration files, by their names relative to a temporary folder; returns the path of the first."""

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path / next(iter(files))

    return write


def test_a_file_without_base(write):
    assert read_config(write({"run.yaml": "seed: 0\nfold: null\n"})) == {"seed": 0, "fold": None}


def test_options_override_those_of_the_base(write):
    path = write(
        {
            "runs/run.yaml": "base: ../base/child.yaml\nlabels: [sad]\nfold: null\n",
            # Relative to its own folder.
            "base/child.yaml": "base: parent.yaml\nseed: 1\n",
            "base/parent.yaml": "seed: 0\nlabels: [happy, angry]\nfold: 3\nbf16: true\n",
        }
    )

    assert read_config(path) == {"seed": 1, "labels": ["sad"], "fold": None, "bf16": True}


@pytest.mark.parametrize(
    "files",
    [
        {"a.yaml": "base: a.yaml\n"},
        {"a.yaml": "base: b.yaml\n", "b.yaml": "base: sub/c.yaml\n", "sub/c.yaml": "base: ../a.yaml\n"},
    ],
)
def test_cycles_raise(write, files):
    with pytest.raises(ValueError, match=r"The base files form a cycle: .*a\.yaml -> .*a\.yaml\. Remove one `base:`"):
        read_config(write(files))


def test_missing_base_raises(write):
    with pytest.raises(FileNotFoundError, match=r"run\.yaml names the base .*other\.yaml, which does not exist"):
        read_config(write({"run.yaml": "base: other.yaml\n"}))


@pytest.mark.parametrize("text", ["", "- seed\n", "seed\n"])
def test_a_file_without_options_raises(write, text):
    with pytest.raises(ValueError, match=r"run\.yaml must hold a mapping of options to values"):
        read_config(write({"run.yaml": text}))
