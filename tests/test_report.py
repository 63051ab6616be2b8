import json

import numpy as np
import pytest
from datasets import Dataset

from modeling_mmemo.evaluation.conditions import ABLATION, BLANK
from modeling_mmemo.evaluation.evaluation_run import corpus_table, pairs_table
from modeling_mmemo.evaluation.report import (
    TIMELINE_HEADINGS,
    markdown_report,
    markdown_table,
    percent,
    summary,
    write_results,
)


LABELS = ["angry", "happy", "sad"]
PARTS = ("missed", "confused", "false_alarm")


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=40)
    rows = Dataset.from_dict(
        {
            "label": [LABELS[index] for index in truth],
            "text_label": [LABELS[index + 1] for index in truth],
            "speaker": [f"speaker {index % 4}" for index in range(40)],
        }
    )
    right = np.eye(3)[truth] * 0.7 + 0.1
    # A voice alone gets one row in four wrong; blank audio costs the text nothing.
    voice = np.where(np.arange(40)[:, None] % 4 == 0, 1 / 3, right)
    scores = {name: voice if name == "audio" else right for name in (*ABLATION, *BLANK)}
    return {
        "model": "me/model",
        "versions": {"mmemo": "1.0"},
        "seed": 0,
        "labels": LABELS,
        "bootstrap": {"samples": 1000, "level": 0.95},
        "corpora": [corpus_table("ravdess", "ravdess, test part", rows, {"audio": voice}, LABELS, "audio")],
        "pairs": [pairs_table("ravdess + meld", "Simulated pairs", rows, scores, rows, right, LABELS)],
        "timelines": [
            {"name": "ravdess", "protocol": "ravdess, test part", "rows": 40, "minutes": 2.5, "changes": 30}
            | {measure: {"value": 0.5, "interval": [0.4, 0.6]} for measure in (*TIMELINE_HEADINGS, *PARTS)}
        ],
    }


def test_pairs_say_what_both_gain_and_what_a_blank_partner_costs(results):
    pairs = results["pairs"][0]

    assert pairs["gain"]["over"] == "text"
    assert pairs["gain"]["wa"]["value"] == 0
    assert pairs["losses"]["noise audio"]["against"] == "text"
    assert pairs["losses"]["noise audio"]["uar"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert pairs["losses"]["blank text"]["against"] == "audio"
    assert pairs["losses"]["blank text"]["wa"]["value"] < 0  # both were better than the voice alone
    assert {name: share["value"] for name, share in pairs["conflicting"]["follows"].items()} == {
        "audio": 1.0,
        "text": 0.0,
        "neither": 0.0,
    }


def test_results_are_written_as_json_report_and_plots(results, tmp_path):
    write_results(results, tmp_path / "new" / "folder")

    written = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert json.loads(written.pop("results.json").read_text()) == results
    report = written.pop("report.md").read_text()
    assert sorted(written) == [
        "confusion-ravdess-meld.png",
        "confusion-ravdess.png",
        "reliability-ravdess-meld.png",
        "reliability-ravdess.png",
    ]
    assert all(f"({name})" in report for name in written)


def test_the_report_calls_pairs_simulated_and_judges_their_losses(results):
    report = markdown_report(results)

    assert "# Evaluation of me/model" in report
    assert "Simulated pairs: 40 rows; intervals over 4 speakers. Given here: both." in report
    assert "| blank audio | text          | 0.0 [0.0, 0.0]" in report
    assert "mmemo 1.0." in report


def test_the_report_has_the_followed_recordings(results):
    report = markdown_report(results)

    assert "| ravdess   | 2.5     | 50.0 [40.0, 60.0] |" in report
    assert "40 clips with 30 changes of emotion; EDER = missed 50.0 [40.0, 60.0]" in report
    assert "## Timelines" not in markdown_report({**results, "timelines": []})


def test_the_summary_has_a_line_a_condition(results):
    lines = summary(results).splitlines()

    assert len(lines) == 2 + 1 + len({**ABLATION, **BLANK})
    assert lines[2].startswith("| ravdess        | audio       | 40   | ")


def test_a_figure_is_a_percentage_with_its_interval():
    assert percent({"value": 0.7378, "interval": [0.7, 0.7712]}) == "73.8 [70.0, 77.1]"
    assert percent(None) == "-"


def test_the_columns_of_a_table_line_up():
    assert markdown_table(["a", "long"], [["wide", "b"]]) == "| a    | long |\n| ---- | ---- |\n| wide | b    |"
