"""The command `mmemo export`."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import tiny
from typer.testing import CliRunner

from mmemo import EmotionPredictor
from mmemo.cli import app
from mmemo.runtime.graph import EmotionGraph
from modeling_mmemo import exporters, load_pipeline
from modeling_mmemo.exporters.export_command import calibration_inputs


ITEM = {"text": "you are not happy"}


@pytest.fixture
def table(make_clip, tmp_path):
    """Training and test rows with audio, with text and with both."""
    rows = []
    for index in range(12):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, make_clip(0.4, index), 16_000)
        rows.append(
            {
                "audio": "" if index % 3 == 1 else str(path),
                "text": "" if index % 3 == 2 else "so happy " * (index + 1),
                "label": ["happy", "sad"][index % 2],
                "split": "test" if index >= 9 else "train",
            }
        )
    return tiny.write_table(tmp_path / "rows.csv", rows)


@pytest.fixture(params=["cached", pytest.param("traced", marks=pytest.mark.slow)])
def graph(request, exported, monkeypatch):
    """Replaces tracing, which is slow, by a copy of the graph that the session's fixture traced of the same model."""

    def copy_graph(model, processor, folder):
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        return Path(shutil.copy(exported / "model.onnx", folder))

    if request.param == "cached":
        monkeypatch.setattr(exporters, "export_onnx", copy_graph, raising=False)


def export(*arguments):
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return [line.partition("  ")[0] for line in result.stdout.splitlines()]


def rows_of(batch):
    return len(next(iter(batch.values())))


def by_label(scores):
    return {entry["label"]: entry["score"] for entry in scores}


@pytest.mark.slow
def test_static_int8(graph, trained, table, tmp_path):
    output = tmp_path / "output"

    written = export(trained, "--output", output, "--int8", "static", "--calibration", table)

    assert written == [str(output / name) for name in ("model.onnx", "model_int8.onnx", "features.safetensors")]
    assert EmotionGraph(output / "model_int8.onnx").metadata["approach"] == "static"
    expected = by_label(load_pipeline(trained)(ITEM))
    assert by_label(EmotionPredictor(output, "model.onnx")(**ITEM)) == pytest.approx(expected, abs=1e-4)
    assert by_label(EmotionPredictor(output)(**ITEM)) == pytest.approx(expected, abs=0.1)


def test_in_place_the_graph_shares_the_models_weights(graph, trained, model):
    model.half().save_pretrained(trained)

    written = export(trained, "--in-place")

    assert written == [str(trained / name) for name in ("model_int8.onnx", "features.safetensors")]
    assert not (trained / "model.onnx").exists()
    expected = by_label(load_pipeline(trained)(ITEM))
    assert by_label(load_pipeline(trained, backend="onnx")(ITEM)) == pytest.approx(expected, abs=0.1)


def test_calibration_uses_training_rows_only(processor, table):
    batches = list(calibration_inputs(processor, [str(table)], table.parent, rows_each=100))

    assert sum(map(rows_of, batches)) == 9
    for mask in ("audio_attention_mask", "attention_mask"):
        assert sum(batch[mask].any(axis=1).sum() for batch in batches if mask in batch) == 6
    assert sum(map(rows_of, calibration_inputs(processor, [str(table)], table.parent, rows_each=3))) == 3


def test_missing_weights_raise(trained, model):
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("text_classifier")}
    model.save_pretrained(trained, state_dict=weights)

    result = CliRunner().invoke(app, ["export", str(trained), "--in-place"])

    assert result.exit_code == 1
    assert "lacks 2 weights, such as text_classifier." in result.stderr and "export a trained model" in result.stderr


def test_other_models_raise(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))

    result = CliRunner().invoke(app, ["export", str(tmp_path), "--in-place"])

    assert result.exit_code == 1 and result.stderr.startswith(f"Error: {tmp_path} holds a 'bert' model, not 'mmemo'; ")
