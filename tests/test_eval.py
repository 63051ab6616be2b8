import csv
import json
import shutil
from pathlib import Path

import pytest
from tiny import write_table

import eval as evaluation
from modeling_mmemo.evaluation.conditions import CONDITIONS
from modeling_mmemo.evaluation.metrics import MEASURES


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
# Labels of the tiny model.
WORDS = {"angry": "wait !", "happy": "i am happy", "sad": "i am sad", "neutral": "i wait ."}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The example clips in the layout of RAVDESS, and a few sentences in the layout of MELD."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(CLIPS, folder / "ravdess")
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = [{**clip, "speaker": speaker} for clip in csv.DictReader(file) for speaker in ("01", "11", "02", "05")]
    sentences = [
        {"text": f"{text} {split}", "label": label, "speaker": "", "split": split}
        for label, text in WORDS.items()
        for split in ("train", "dev", "test", "test")
    ]
    write_table(folder / "ravdess" / "metadata.csv", clips)
    write_table(folder / "text" / "meld_text.csv", sentences)
    return folder


@pytest.fixture
def saved(emotion, tmp_path):
    emotion.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_corpora_pairs_and_timelines_are_evaluated(saved, data_dir, tmp_path, capsys):
    folder = tmp_path / "results"
    options = ["--model", saved, "--data_dir", str(data_dir), "--output_dir", str(folder), "--batch_size", "4"]

    evaluation.main(
        [*options, "--corpora", "ravdess", "meld", "--pairs", "ravdess+meld", "--timelines", "ravdess", "ravdess+meld"]
    )

    results = json.loads((folder / "results.json").read_text())
    ravdess, meld = results["corpora"]
    assert (ravdess["headline"], ravdess["groups"], ravdess["resampled"]) == ("audio", 2, "speakers")
    assert set(ravdess["conditions"]) == {
        name for name in CONDITIONS if not name.startswith(("al", "b", "no", "sh"))
    } | {"both"}
    assert (meld["headline"], meld["rows"], meld["resampled"]) == ("text", 8, "rows")
    assert list(meld["conditions"]) == ["text"]
    assert meld["protocol"] == "meld, test part"
    (pairs,) = results["pairs"]
    assert set(pairs["conditions"]) == set(CONDITIONS) - {"no context"}
    assert pairs["conflicting"]["rows"] == pairs["rows"] == ravdess["rows"]
    alone, together = results["timelines"]
    assert [table["rows"] for table in (alone, together)] == [ravdess["rows"], pairs["rows"]]
    assert alone["eder"]["value"] > 0
    for table in (ravdess, meld, pairs):
        assert table["conditions"][table["headline"]].keys() == set(MEASURES)
        assert sum(map(sum, table["confusion"]["counts"])) == table["rows"]
        assert sum(entry["rows"] for entry in table["reliability"]) == table["rows"]
    printed = capsys.readouterr().out
    assert "| ravdess + meld | blank audio" in printed
    assert all(line in (folder / "report.md").read_text() for line in printed.splitlines())
    assert "relative reduction" in printed


def test_dialogue_models_are_also_evaluated_without_context(saved, data_dir, tmp_path):
    processor = Path(saved, "processor_config.json")
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"context_turns": 2, "context_tokens": 32}))
    shutil.copytree(data_dir, tmp_path / "data")
    lines = [
        {"dialogue": "1", "text": text, "label": label, "speaker": speaker, "split": "test"}
        for (label, text), speaker in zip(WORDS.items(), "ABAB")
    ]
    write_table(tmp_path / "data" / "text" / "meld_text.csv", lines)
    options = ["--model", saved, "--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "results")]

    evaluation.main([*options, "--corpora", "meld", "--pairs", "ravdess+meld"])

    results = json.loads((tmp_path / "results" / "results.json").read_text())
    conditions, pairs = results["corpora"][0]["conditions"], results["pairs"][0]["conditions"]
    assert list(conditions) == ["text", "no context"]
    assert conditions["text"] != conditions["no context"]
    assert "no context" in pairs


def test_evaluations_with_the_same_seed_write_the_same_file(saved, data_dir, tmp_path):
    options = ["--model", saved, "--data_dir", str(data_dir), "--pairs", "ravdess+meld", "--limit", "4"]

    for folder in ("one", "two"):
        evaluation.main([*options, "--output_dir", str(tmp_path / folder), "--conditions", "snr 0 dB"])

    first, second = ((tmp_path / folder / "results.json").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert json.loads(first)["pairs"][0]["protocol"].endswith("at most 4 rows drawn at random")


def test_swapped_pairs_raise(saved, data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"meld\+ravdess need emotion in the audio of meld, but it is in \('text',\)"):
        evaluation.main(["--model", saved, "--data_dir", str(data_dir), "--pairs", "meld+ravdess"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Nothing to evaluate; pass --corpora, --pairs"),
        (["--corpora", "ravdes"], r"Unknown corpora \['ravdes'\]; choose among"),
        (["--pairs", "ravdess"], r"'ravdess' must be AUDIO\+TEXT"),
        (["--corpora", "meld", "--conditions", "loud"], r"Unknown conditions \['loud'\]"),
        (["--corpora", "meld", "--limit", "1"], "limit=1 must be at least 2"),
        (["--corpora", "meld", "--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--folds"], "--folds needs a training configuration"),
        (["--folds", "--corpora", "ravdess"], "--folds needs a training configuration"),
    ],
)
def test_invalid_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        evaluation.main(options)


def test_incomplete_rows_are_left_out_and_counted(saved, data_dir, tmp_path):
    table = tmp_path / "data" / "text" / "meld_text.csv"
    table.parent.mkdir(parents=True)
    lines = (data_dir / "text" / "meld_text.csv").read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([*lines, " ,sad,,test"]) + "\n", encoding="utf-8")
    folder = tmp_path / "results"

    options = ["--model", saved, "--data_dir", str(tmp_path / "data"), "--output_dir", str(folder)]
    evaluation.main([*options, "--corpora", "meld"])

    (meld,) = json.loads((folder / "results.json").read_text())["corpora"]
    assert meld["rows"] == 8
    assert meld["protocol"] == "meld, test part, 1 incomplete rows left out"
