import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_table

import eval as evaluation
import train
from modeling_mmemo.data.corpora import CORPORA


CLIPS = Path(__file__).parents[1] / "examples" / "audio"
FLAGS = "--use_cpu true --report_to none --num_train_epochs 1 --per_device_train_batch_size 4 --audio_mode frozen"
FLAGS += " --audio_layers 1 --fusion_hidden_size 16"


@pytest.fixture
def config(encoders, tmp_path, monkeypatch):
    """A configuration with the example clips, which are from EmoDB, in two folds."""
    shutil.copytree(CLIPS, tmp_path / "data" / "emodb")
    shutil.copytree(encoders[0], tmp_path / "encoder")
    folds = (("03", "08", "09"), ("13", "14"))
    monkeypatch.setitem(CORPORA, "emodb", replace(CORPORA["emodb"], folds=folds))
    path = tmp_path / "emodb.yaml"
    path.write_text(
        f"corpora: [emodb]\naudio_encoder: {tmp_path / 'encoder'}\ndata_dir: {tmp_path / 'data'}\n"
        f"cache_dir: {tmp_path / 'features'}\noutput_dir: {tmp_path / 'folds'}\n"
    )
    return path


def run(config, *flags):
    evaluation.main(["--folds", str(config), *FLAGS.split(), *flags])
    return json.loads((config.parent / "folds" / "results.json").read_text())


@pytest.mark.slow
def test_every_speaker_is_tested_by_a_model_trained_without_them(config, capsys):
    results = run(config)

    (table,) = results["corpora"]
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        speakers = [row["speaker"] for row in csv.DictReader(file)]
    assert (table["rows"], table["groups"]) == (len(speakers), len(set(speakers)))
    assert len(table["folds"]["each"]) == 2
    assert table["folds"]["mean"]["wa"] == pytest.approx(
        np.mean([fold["wa"] for fold in table["folds"]["each"]]), abs=1e-4
    )
    report = (config.parent / "folds" / "report.md").read_text()
    assert "| mean |" in report
    assert "emodb" in capsys.readouterr().out


@pytest.fixture
def trained_folds(monkeypatch):
    """The options of the folds that were trained; scores of a fold are drawn at random instead of training it."""
    trained = []

    def train(arguments):
        trained.append(arguments)
        Path(arguments[-1].output_dir).mkdir(parents=True, exist_ok=True)

    def score(emotion, condition, rows, lengths, carriers, faces):
        return np.random.default_rng(len(rows)).random((len(rows), 7))

    monkeypatch.setattr("modeling_mmemo.training.folds.train", train)
    monkeypatch.setattr("modeling_mmemo.training.folds.load_pipeline", lambda folder: None)
    monkeypatch.setattr("modeling_mmemo.training.folds.row_lengths", lambda *arguments: None)
    monkeypatch.setattr("modeling_mmemo.training.folds.score_condition", score)
    for plot in ("plot_confusion", "plot_reliability"):  # take most of the time of a run
        monkeypatch.setattr(f"modeling_mmemo.evaluation.report.{plot}", lambda *arguments: None)
    return trained


def names(trained):
    return [Path(arguments[-1].output_dir).name for arguments in trained]


def test_scored_folds_are_not_trained_again(config, trained_folds):
    first = run(config)
    assert names(trained_folds) == ["fold-1", "fold-2"]

    second = run(config, "--report_to", "none", "--logging_steps", "7")

    assert names(trained_folds) == ["fold-1", "fold-2"]
    assert second["corpora"] == first["corpora"]


def change_option(config):
    config.write_text(config.read_text() + "head_learning_rate: 0.1\n")


def change_clip(config):
    clip = sorted((config.parent / "data" / "emodb").glob("*.flac"))[0]
    os.utime(clip, (0, 0))


def change_label(config):
    table = config.parent / "data" / "emodb" / "metadata.csv"
    table.write_text(table.read_text().replace("sadness", "fear").replace(",sad,", ",fear,"))


def change_encoder(config):
    encoder = config.parent / "encoder"
    path = next(encoder.glob("*.safetensors"))
    os.utime(path, (0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("change", [change_option, change_clip, change_label, change_encoder])
def test_folds_are_trained_again_after_a_change(config, trained_folds, caplog, change):
    run(config)

    change(config)
    run(config)

    assert names(trained_folds) == ["fold-1", "fold-2"] * 2
    assert "fold-1: the options or the data changed" in caplog.text
    run(config)
    assert len(trained_folds) == 4


def test_interrupted_fold_is_trained_again(config, trained_folds):
    run(config)
    (config.parent / "folds" / "fold-2" / "scores.npy").unlink()

    run(config)

    assert names(trained_folds) == ["fold-1", "fold-2", "fold-2"]


def test_corpus_without_folds_raises(config):
    config.write_text(config.read_text().replace("[emodb]", "[goemotions]"))
    with pytest.raises(ValueError, match=r"corpora=\['goemotions'\] must name one corpus that has folds"):
        run(config)


@pytest.fixture
def corpora(config):
    """A configuration with the example clips as three corpora, of which EmoDB is never trained on."""
    data = config.parent / "data"
    with (CLIPS / "metadata.csv").open(newline="", encoding="utf-8") as file:
        clips = [
            row | {"split": split}
            for row, split in zip(csv.DictReader(file), ("train", "dev", "test", "test", "train", "dev"))
        ]
    for corpus in ("tess", "nemo"):
        shutil.copytree(CLIPS, data / corpus)
        write_table(data / corpus / "metadata.csv", clips)
    config.write_text(
        config.read_text().replace("[emodb]", "[tess, nemo]")
        + "corpus_weights: [2, 0.5]\nleave_out: [tess, nemo]\ntest_corpora: [emodb]\n"
    )
    return config


def test_every_corpus_is_tested_by_a_model_trained_without_it(corpora, trained_folds, capsys):
    results = run(corpora)

    tables = {table["name"]: table for table in results["corpora"]}
    assert {name: table["rows"] for name, table in tables.items()} == {"tess": 6, "nemo": 6, "emodb": 6}
    assert tables["nemo"]["protocol"] == "nemo, whole corpus, by a model trained on tess"
    assert tables["emodb"]["protocol"] == "emodb, whole corpus, by a model trained on tess, nemo"
    overall = [tables[name]["conditions"]["audio"] for name in ("tess", "nemo")]
    present = [tables[name]["present_labels"] for name in ("tess", "nemo")]
    assert results["left_out"]["corpora"] == ["tess", "nemo"]
    for key, figures in (("mean", overall), ("mean_over_present_labels", present)):
        mean = np.mean([figure["uar"]["value"] for figure in figures])
        assert results["left_out"][key]["uar"] == pytest.approx(mean, abs=1e-4)
    assert all("surprise" not in part["labels"] for part in present)
    note = "Mean of the 2 corpora left out of training in turn (tess, nemo): UAR "
    assert note in capsys.readouterr().out and note in (corpora.parent / "folds" / "report.md").read_text()


@pytest.mark.slow
def test_only_runs_with_changed_corpora_are_trained_again(corpora, trained_folds):
    first = run(corpora)
    second = run(corpora)

    assert names(trained_folds) == ["without-tess", "without-nemo", "all"]
    assert [data.corpora for _, data, _, _ in trained_folds] == [["nemo"], ["tess"], ["tess", "nemo"]]
    assert [data.corpus_weights for _, data, _, _ in trained_folds] == [[0.5], [2.0], [2.0, 0.5]]
    assert second["corpora"] == first["corpora"]

    change_label(corpora)  # of EmoDB, which only the last run uses
    run(corpora)

    assert names(trained_folds)[3:] == ["all"]


@pytest.mark.slow
def test_models_are_trained_and_scored_without_a_corpus(corpora):
    results = run(corpora)

    assert [table["rows"] for table in results["corpora"]] == [6, 6, 6]
    assert all((corpora.parent / "folds" / folder / "config.json").is_file() for folder in ("without-tess", "all"))


def test_corpora_without_others_to_test_on(corpora, trained_folds):
    corpora.write_text(corpora.read_text().replace("test_corpora: [emodb]", ""))

    results = run(corpora)

    assert names(trained_folds) == ["without-tess", "without-nemo"]
    assert [table["name"] for table in results["corpora"]] == ["tess", "nemo"]


def test_clips_to_test_on_are_checked_before_training(corpora, trained_folds):
    (corpora.parent / "data" / "emodb" / "03b01Wa.flac").unlink()

    with pytest.raises(ValueError, match=r"03b01Wa\.flac does not exist"):
        run(corpora)

    assert not trained_folds


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--leave_out tess emodb",
            r"leave_out=\['tess', 'emodb'\]: \['emodb'\] are not among corpora=\['tess', 'nemo'",
        ),
        (
            "--corpora tess --corpus_weights 1 --leave_out tess",
            r"leave_out=\['tess'\] contradicts corpora=\['tess'\]: no",
        ),
        (
            "--test_corpora emodb nemo",
            r"test_corpora=\['emodb', 'nemo'\] contradicts .*: \['nemo'\] would be trained on",
        ),
        (
            "--leave_out calls.csv",
            r"leave_out=\['calls.csv'\]: \['calls.csv'\] are unknown; choose some of \['brighter'",
        ),
        ("--leave_out tess tess", r"leave_out=\['tess', 'tess'\] must not name a corpus twice"),
        ("--fold 1", r"fold=1 contradicts leave_out=\['tess', 'nemo'\], which leaves out whole corpora"),
    ],
)
def test_contradictory_options_raise(corpora, flags, message):
    with pytest.raises(ValueError, match=message):
        run(corpora, *flags.split())


def test_corpora_to_test_on_need_corpora_to_leave_out(config):
    with pytest.raises(ValueError, match=r"test_corpora=\['tess'\] needs leave_out"):
        run(config, "--test_corpora", "tess")


def test_a_training_run_leaves_no_corpus_out(corpora):
    with pytest.raises(ValueError, match=r"leave_out=\['tess', 'nemo'\] is an option of cross-validation"):
        train.main([str(corpora)])
