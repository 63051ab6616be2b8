import csv
import json
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
    """A run on the example clips, which are of EmoDB, as two folds."""
    shutil.copytree(CLIPS, tmp_path / "data" / "emodb")
    folds = (("03", "08", "09"), ("13", "14"))
    monkeypatch.setitem(CORPORA, "emodb", replace(CORPORA["emodb"], folds=folds))
    path = tmp_path / "emodb.yaml"
    path.write_text(
        f"corpora: [emodb]\naudio_encoder: {encoders[0]}\ndata_dir: {tmp_path / 'data'}\n"
        f"cache_dir: {tmp_path / 'features'}\noutput_dir: {tmp_path / 'folds'}\n"
    )
    return path


def run(config):
    evaluation.main(["--folds", str(config), *FLAGS.split()])
    return json.loads((config.parent / "folds" / "results.json").read_text())


def test_every_speaker_is_tested_by_a_model_that_has_not_heard_them(config, capsys):
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


def test_a_scored_fold_is_not_trained_again(config):
    first = run(config)
    scores = config.parent / "folds" / "fold-1" / "scores.npy"
    np.save(scores, np.eye(7)[np.zeros(len(np.load(scores)), int)])
    (config.parent / "folds" / "fold-1" / "model.safetensors").unlink()

    second = run(config)

    assert not (config.parent / "folds" / "fold-1" / "model.safetensors").exists()
    assert second["corpora"][0]["folds"]["each"][1] == first["corpora"][0]["folds"]["each"][1]


def test_a_corpus_without_folds_is_refused(config):
    config.write_text(config.read_text().replace("[emodb]", "[goemotions]"))
    with pytest.raises(ValueError, match=r"corpora=\['goemotions'\] must name one corpus that has folds"):
        run(config)
