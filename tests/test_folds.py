import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation
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
    """The names of the folds that were trained; scores of a fold are drawn at random instead of training it."""
    trained = []

    def train(arguments):
        trained.append(Path(arguments[-1].output_dir).name)
        Path(arguments[-1].output_dir).mkdir(parents=True, exist_ok=True)

    def score(emotion, condition, rows, lengths, available):
        return np.random.default_rng(len(rows)).random((len(rows), 7))

    monkeypatch.setattr("modeling_mmemo.training.folds.train", train)
    monkeypatch.setattr("modeling_mmemo.training.folds.load_pipeline", lambda folder: None)
    monkeypatch.setattr("modeling_mmemo.training.folds.row_lengths", lambda emotion, rows, modality: None)
    monkeypatch.setattr("modeling_mmemo.training.folds.score_condition", score)
    return trained


def test_scored_folds_are_not_trained_again(config, trained_folds):
    first = run(config)
    assert trained_folds == ["fold-1", "fold-2"]

    second = run(config, "--report_to", "none", "--logging_steps", "7")

    assert trained_folds == ["fold-1", "fold-2"]
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


@pytest.mark.parametrize("change", [change_option, change_clip, change_label, change_encoder])
def test_folds_are_trained_again_after_a_change(config, trained_folds, caplog, change):
    run(config)

    change(config)
    run(config)

    assert trained_folds == ["fold-1", "fold-2"] * 2
    assert "fold-1: the options or the data changed" in caplog.text
    run(config)
    assert len(trained_folds) == 4


def test_interrupted_fold_is_trained_again(config, trained_folds):
    run(config)
    (config.parent / "folds" / "fold-2" / "scores.npy").unlink()

    run(config)

    assert trained_folds == ["fold-1", "fold-2", "fold-2"]


def test_corpus_without_folds_raises(config):
    config.write_text(config.read_text().replace("[emodb]", "[goemotions]"))
    with pytest.raises(ValueError, match=r"corpora=\['goemotions'\] must name one corpus that has folds"):
        run(config)
