import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_table
from typer.testing import CliRunner

import eval as evaluation
from mmemo.cli import app
from modeling_mmemo.data.sources import read_source
from modeling_mmemo.data.splits import split_by_speaker
from modeling_mmemo.evaluation.conditions import CONDITIONS, VIDEO_CONDITIONS
from modeling_mmemo.evaluation.evaluation_arguments import EvaluationArguments
from modeling_mmemo.evaluation.metrics import MEASURES


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
SPEECH_CONDITIONS = CONDITIONS.keys() - VIDEO_CONDITIONS.keys()
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


@pytest.mark.slow
def test_corpora_pairs_and_timelines_are_evaluated(saved, data_dir, tmp_path, capsys):
    folder = tmp_path / "results"
    options = ["--model", saved, "--data_dir", str(data_dir), "--output_dir", str(folder), "--batch_size", "4"]
    options.append("--allow_unknown_labels")

    evaluation.main(
        [*options, "--corpora", "ravdess", "meld", "--pairs", "ravdess+meld", "--timelines", "ravdess", "ravdess+meld"]
    )

    results = json.loads((folder / "results.json").read_text())
    ravdess, meld = results["corpora"]
    assert (ravdess["headline"], ravdess["groups"], ravdess["resampled"]) == ("audio", 2, "speakers")
    assert set(ravdess["conditions"]) == {
        name for name in SPEECH_CONDITIONS if not name.startswith(("al", "b", "no", "sh"))
    } | {"both"}
    assert (meld["headline"], meld["rows"], meld["resampled"]) == ("text", 8, "rows")
    assert list(meld["conditions"]) == ["text"]
    assert meld["protocol"] == "meld, test part"
    (pairs,) = results["pairs"]
    assert set(pairs["conditions"]) == SPEECH_CONDITIONS - {"no context"}
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


@pytest.mark.slow
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

    evaluation.main([*options, "--corpora", "meld", "--pairs", "ravdess+meld", "--allow_unknown_labels"])

    results = json.loads((tmp_path / "results" / "results.json").read_text())
    conditions, pairs = results["corpora"][0]["conditions"], results["pairs"][0]["conditions"]
    assert list(conditions) == ["text", "no context"]
    assert conditions["text"] != conditions["no context"]
    assert "no context" in pairs


def test_languages_are_evaluated_together_and_alone(saved, tmp_path):
    texts = [
        {"text": text, "label": label, "language": language, "split": "test"}
        for label, text in WORDS.items()
        for language in ("eng", "chn", "chn")
    ]
    write_table(tmp_path / "data" / "text" / "brighter.csv", texts)
    options = ["--model", saved, "--data_dir", str(tmp_path / "data"), "--corpora", "brighter"]

    for folder, languages in (("all", []), ("one", ["--languages", "zh"])):
        evaluation.main([*options, "--output_dir", str(tmp_path / folder), *languages])

    every, chinese = (
        json.loads((tmp_path / folder / "results.json").read_text())["corpora"][0] for folder in ("all", "one")
    )
    assert {language: part["rows"] for language, part in every["languages"].items()} == {"en": 4, "zh": 8}
    assert chinese["rows"] == 8 and "languages" not in chinese
    assert chinese["conditions"]["text"]["uar"] == every["languages"]["zh"]["uar"]


@pytest.mark.slow
def test_evaluations_with_the_same_seed_write_the_same_file(saved, data_dir, tmp_path):
    options = ["--model", saved, "--data_dir", str(data_dir), "--pairs", "ravdess+meld", "--limit", "4"]
    options.append("--allow_unknown_labels")

    for folder in ("one", "two"):
        evaluation.main([*options, "--output_dir", str(tmp_path / folder), "--conditions", "snr 0 dB"])

    first, second = ((tmp_path / folder / "results.json").read_bytes() for folder in ("one", "two"))
    assert first == second
    assert json.loads(first)["pairs"][0]["protocol"].endswith("at most 4 rows drawn at random")


def test_swapped_pairs_raise(saved, data_dir, tmp_path):
    options = ["--model", saved, "--data_dir", str(data_dir), "--allow_unknown_labels"]
    with pytest.raises(ValueError, match=r"meld\+ravdess need emotion in the audio of meld, but it is in \('text',\)"):
        evaluation.main([*options, "--pairs", "meld+ravdess"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Nothing to evaluate; pass --corpora, --pairs"),
        (["--corpora", "ravdes"], r"Unknown corpora \['ravdes'\]; choose among"),
        (["--pairs", "ravdess"], r"'ravdess' must be AUDIO\+TEXT"),
        (["--corpora", "meld", "--conditions", "loud"], r"Unknown conditions \['loud'\]"),
        (["--corpora", "meld", "--limit", "1"], "limit=1 must be at least 2"),
        (["--corpora", "meld", "--batch_size", "0"], "batch_size=0 must be at least 1"),
        (["--corpora", "meld", "--split", "holdout"], "split='holdout' is unknown; choose one of"),
        (["--corpora", "meld", "--dev_share", "0.1"], r"dev_share=0\.1 needs split=dev"),
        (["--corpora", "meld", "--columns", "label=mood"], r"columns=\['label=mood'\] contradicts corpora=\['meld'\]"),
        (["--corpora", "calls.csv", "--label_map", "joy"], r"label_map=\['joy'\] must be written as theirs=ours"),
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


@pytest.fixture
def calls(tmp_path):
    """A table in the form of "eval_own_csv": clips with and without text, texts, Chinese labels, one unknown label."""
    shutil.copytree(CLIPS, tmp_path / "clips")
    clips = sorted((tmp_path / "clips").glob("*.flac"))
    labels = ("生气", "开心", "sad")
    rows = [
        {
            "path": f"clips/{clips[index % 6].name}" if index % 5 else "",
            "text": "i am happy" if index % 2 == 0 else "",
            "mood": labels[index % 3],
            "who": str(index % 4),
        }
        for index in range(24)
    ]
    return write_table(tmp_path / "calls.csv", rows)


MAPPED = ("--columns", "label=mood", "audio=path", "speaker=who", "--label_map", "生气=angry", "开心=happy")


def run_on(saved, folder, *options):
    evaluation.main(["--model", saved, "--output_dir", str(folder), "--conditions", "audio", "text", *options])
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_own_tables_are_evaluated_in_every_way(saved, calls, tmp_path, capsys):
    source, folder = str(calls), tmp_path / "results"
    options = ("--pairs", f"{source}+{source}", "--timelines", source, f"{source}+{source}")

    results = run_on(saved, folder, "--corpora", source, *options, *MAPPED)

    (own,) = results["corpora"]
    # Every fifth row has no clip, so rows are scored with what they have; one of them has no text either.
    assert (own["name"], own["headline"], own["groups"]) == ("calls", "as given", 4)
    assert own["rows"] == 24 - sum(index % 5 == 0 and index % 2 == 1 for index in range(24))
    assert own["protocol"] == "calls, whole corpus (it has no test part), 2 incomplete rows left out"
    assert list(own["conditions"]) == ["as given"]
    assert [own["per_class"][label]["support"] > 0 for label in results["labels"]] == [True, True, False, True]
    assert results["pairs"][0]["name"] == "calls + calls"
    assert [table["name"] for table in results["timelines"]] == ["calls", "calls + calls"]
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert "| as given" in report and str(tmp_path) not in report.partition("\n")[2]
    assert "| calls " in capsys.readouterr().out
    update = CliRunner().invoke(app, ["card", saved, "--results", str(folder)])
    assert update.exit_code == 0, update.stderr
    card = Path(saved, "README.md").read_text(encoding="utf-8")
    assert "| calls, as given" in card and str(tmp_path) not in card


def test_audiofolders_are_evaluated(saved, tmp_path):
    for index, clip in enumerate(sorted(CLIPS.glob("*.flac"))):
        folder = tmp_path / "calls" / ("angry", "sad")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder)

    results = run_on(saved, tmp_path / "results", "--corpora", str(tmp_path / "calls"))

    (own,) = results["corpora"]
    assert (own["headline"], own["rows"], own["resampled"]) == ("audio", 6, "rows")
    assert "Fewer than two speakers are known" in (tmp_path / "results" / "report.md").read_text()


def test_the_speakers_that_training_sets_aside_are_evaluated(saved, calls, tmp_path):
    options = ("--corpora", str(calls), *MAPPED, "--split", "dev", "--dev_share", "0.2")

    (own,) = run_on(saved, tmp_path / "results", *options)["corpora"]

    rows = read_source(
        str(calls),
        "data",
        columns={"label": "mood", "audio": "path", "speaker": "who"},
        labels=("angry", "happy", "sad"),
        label_map={"生气": "angry", "开心": "happy"},
    )
    dev = split_by_speaker(rows, 0.2, seed=0).filter(
        lambda row: row["split"] == "dev" and (row["audio"] or row["text"])
    )
    assert (own["rows"], own["groups"]) == (len(dev), len(dev))
    assert own["protocol"].startswith("calls, dev part")


def test_labels_that_the_model_lacks_raise(saved, calls, tmp_path):
    columns = MAPPED[:4]

    with pytest.raises(
        ValueError, match=r"16 of 24 rows .*: 开心 \(8\), 生气 \(8\)\. Train .* \(--allow_unknown_labels"
    ):
        run_on(saved, tmp_path / "results", "--corpora", str(calls), *columns)
    with pytest.raises(
        ValueError,
        match=r"All 8 rows of .*csv \(whole .* have the label 'sad', so .* are sad \(8\), 开心 \(8\), 生气 \(8\); "
        r"those of the model are \['angry', 'happy', 'neutral', 'sad'\]",
    ):
        run_on(saved, tmp_path / "results", "--corpora", str(calls), *columns, "--allow_unknown_labels")
    with pytest.raises(ValueError, match=r"labels=\['生气'\]: the model does not have \['生气'\]; its labels are"):
        run_on(saved, tmp_path / "results", "--corpora", str(calls), *columns, "--labels", "生气")


def test_every_missing_clip_is_named_first(saved, calls, tmp_path):
    shutil.rmtree(tmp_path / "clips")

    with pytest.raises(ValueError, match=r"6 audio file\(s\) cannot be read") as error:
        run_on(saved, tmp_path / "results", "--corpora", str(calls), *MAPPED)
    assert str(error.value).count("does not exist") == 6


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/missing", "model=/missing is neither a folder nor a name on the Hub (owner/name); paths are relative to"),
        ("runs/none", "model=runs/none is neither a folder in "),
        (".", "model=. is not the folder of a model: it has no config.json"),
    ],
)
def test_missing_models_raise(model, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(FileNotFoundError) as error:
        evaluation.main(["--model", model, "--corpora", "meld"])

    assert str(error.value).startswith(message)


@pytest.mark.slow
def test_a_script_reports_errors_without_a_traceback(tmp_path):
    script = Path(evaluation.__file__)
    options = [sys.executable, str(script), "--corpora", "meld", "--data_dir", str(tmp_path)]

    found = subprocess.run(options, capture_output=True, text=True)
    debugged = subprocess.run([*options, "--debug"], capture_output=True, text=True)

    assert (found.returncode, debugged.returncode) == (1, 1)
    message = f"{tmp_path} has no text/meld_text.csv nor meld; put meld there, or set --data_dir to its parent folder."
    assert found.stderr.splitlines()[-1] == f"Error: {message}"
    assert "Traceback" not in found.stderr
    assert "Traceback" in debugged.stderr and debugged.stderr.splitlines()[-1] == f"ValueError: {message}"


def test_sources_of_the_same_short_name_are_told_apart(tmp_path):
    one, other = (write_table(tmp_path / part / "calls.csv", [{"text": "a", "label": "sad"}]) for part in "ab")

    alone = EvaluationArguments(corpora=[str(one)])
    both = EvaluationArguments(corpora=[str(one), "meld"], pairs=[f"{one}+{other}"])

    assert alone.name_of(str(one)) == "calls"
    assert [both.name_of(name) for name in (str(one), str(other), "meld")] == [str(one), str(other), "meld"]
