import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from modeling_mmemo.evaluation.card import results_section
from modeling_mmemo.evaluation.conditions import ABLATION, BLANK
from modeling_mmemo.evaluation.evaluation_run import corpus_table, pairs_table
from modeling_mmemo.evaluation.report import (
    TIMELINE_HEADINGS,
    caveats,
    markdown_report,
    markdown_table,
    percent,
    summary,
    write_results,
)
from modeling_mmemo.evaluation.report_plots import drawable_labels


RESULTS = Path(__file__).parents[1] / "results"
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
    correct = np.eye(3)[truth] * 0.7 + 0.1
    # Audio alone is wrong on one row in four; blank audio does not change the text's scores.
    audio = np.where(np.arange(40)[:, None] % 4 == 0, 1 / 3, correct)
    scores = {name: audio if name == "audio" else correct for name in (*ABLATION, *BLANK)}
    return {
        "model": "me/model",
        "versions": {"mmemo": "1.0"},
        "seed": 0,
        "labels": LABELS,
        "bootstrap": {"samples": 1000, "level": 0.95},
        "corpora": [corpus_table("ravdess", "ravdess, test part", rows, {"audio": audio}, LABELS, "audio")],
        "pairs": [pairs_table("ravdess + meld", "Simulated pairs", rows, scores, rows, correct, LABELS)],
        "timelines": [
            {"name": "ravdess", "protocol": "ravdess, test part", "rows": 40, "minutes": 2.5, "changes": 30}
            | {measure: {"value": 0.5, "interval": [0.4, 0.6]} for measure in (*TIMELINE_HEADINGS, *PARTS)}
        ],
    }


def test_pairs_have_gain_and_losses(results):
    pairs = results["pairs"][0]

    assert pairs["gain"]["over"] == "text"
    assert pairs["gain"]["wa"]["value"] == 0
    assert pairs["losses"]["noise audio"]["against"] == "text"
    assert pairs["losses"]["noise audio"]["uar"] == {"value": 0.0, "interval": [0.0, 0.0]}
    assert pairs["losses"]["blank text"]["against"] == "audio"
    assert (
        pairs["losses"]["blank text"]["wa"]["value"] < 0
    )  # with blank text the scores are better than with audio alone
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


def test_the_report_of_pairs(results):
    report = markdown_report(results)

    assert "# Evaluation of me/model" in report
    assert "Simulated pairs: 40 rows; intervals over 4 speakers. Condition: both." in report
    assert "| blank audio | text          | 0.0 [0.0, 0.0]" in report
    assert "mmemo 1.0." in report


def test_the_report_of_timelines(results):
    report = markdown_report(results)

    assert "| ravdess   | 2.5     | 50.0 [40.0, 60.0] |" in report
    assert "40 clips with 30 changes of emotion; EDER = missed 50.0 [40.0, 60.0]" in report
    assert "## Timelines" not in markdown_report({**results, "timelines": []})


def test_rows_in_several_languages_have_figures_of_each(results):
    rows = Dataset.from_dict(
        {
            "label": ["angry", "sad", "angry", "happy", "sad"],
            "speaker": [None] * 5,
            "language": ["zh", "zh", "en", "en", None],
        }
    )
    scores = np.eye(3)[[0, 2, 0, 0, 2]]

    def table(rows, scores):
        return corpus_table("brighter", "brighter, test part", rows, {"text": scores}, LABELS, "text")

    several, one = table(rows, scores), table(rows.select(range(2)), scores[:2])

    assert list(several["languages"]) == ["en", "zh"] and several["rows"] == 5
    chinese, english = several["languages"]["zh"], several["languages"]["en"]
    assert (chinese["rows"], chinese["uar"]["value"], chinese["macro_f1"]["value"]) == (2, 1, 1)
    assert (english["rows"], english["uar"]["value"]) == (2, 0.5)
    assert "languages" not in one
    assert "languages" not in results["corpora"][0]
    report = markdown_report({**results, "corpora": [several]})
    assert "| language | rows | macro-F1" in report and "\n| zh       | 2    | 100.0 " in report


def test_rows_that_lack_a_label_are_also_scored_without_it(results):
    rows = Dataset.from_dict({"label": ["angry", "angry", "sad", "sad"], "speaker": ["a", "b", "a", "b"]})
    scores = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.0, 0.2, 0.8]])

    table = corpus_table("emodb", "emodb, whole corpus", rows, {"audio": scores}, LABELS, "audio")

    # Without happy the second and third predictions change, of which the first becomes wrong.
    present = table["present_labels"]
    assert present["labels"] == ["angry", "sad"]
    assert (table["conditions"]["audio"]["uar"]["value"], present["uar"]["value"]) == (0.5, 0.75)
    assert present["uar"]["interval"] == [0.5, 1.0]
    # Confidences 3/5, 6/7, 3/4 and 1, of which the first prediction is wrong.
    assert present["ece"]["value"] == pytest.approx((3 / 5 + 1 / 7 + 1 / 4 + 0) / 4, abs=1e-4)
    note = (
        "emodb, audio: UAR 50.0 [0.0, 100.0] over all labels of the model, 75.0 [50.0, 100.0] over the 2 that its "
        "rows have (angry, sad)."
    )
    own = {**results, "corpora": [table], "pairs": []}
    assert summary(own).endswith(note) and note in results_section(own)
    report = markdown_report(own)
    assert note in report and "No row has the labels happy." in report
    assert "| the 2 of the rows  | 75.0 [50.0, 100.0] |" in report


def test_rows_with_all_labels_or_only_one_are_scored_once():
    scores = np.eye(3)

    every = corpus_table(
        "a", "a", Dataset.from_dict({"label": LABELS, "speaker": [None] * 3}), {"text": scores}, LABELS, "text"
    )
    one = corpus_table(
        "a", "a", Dataset.from_dict({"label": ["sad"] * 3, "speaker": [None] * 3}), {"text": scores}, LABELS, "text"
    )

    assert "present_labels" not in every and "present_labels" not in one


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/results.json")), ids=lambda path: path.parent.name)
def test_recorded_results_are_rendered(path):
    recorded = json.loads(path.read_text(encoding="utf-8"))
    earlier = {
        **recorded,
        "corpora": [
            {name: value for name, value in table.items() if name != "present_labels"} for table in recorded["corpora"]
        ],
    }

    for results in (recorded, earlier):
        assert summary(results) in markdown_report(results)
        assert all(table["name"] in results_section(results) for table in results["corpora"])


def test_the_summary_has_one_line_per_condition(results):
    lines, *notes = (part.splitlines() for part in summary(results).split("\n\n"))

    assert len(lines) == 2 + 1 + len({**ABLATION, **BLANK})
    assert [note[0].partition(":")[0] for note in notes] == ["ravdess, audio", "ravdess + meld, both"]
    assert lines[2].startswith("| ravdess        | audio       | 40   | ")


def test_percent():
    assert percent({"value": 0.7378, "interval": [0.7, 0.7712]}) == "73.8 [70.0, 77.1]"
    assert percent(None) == "-"


def test_table_columns_are_aligned():
    assert markdown_table(["a", "long"], [["wide", "b"]]) == "| a    | long |\n| ---- | ---- |\n| wide | b    |"


def test_undefined_figures_are_dashes():
    assert percent({"value": float("nan"), "interval": [0.0, 1.0]}) == percent(None) == "-"
    assert percent({"value": 0.5, "interval": None}) == "50.0"


def test_cells_cannot_break_a_table():
    assert markdown_table(["label"], [["a|b\nc"]]).splitlines()[-1] == r"| a\|b c |"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"resampled": "rows"}, ["ravdess: Fewer than two speakers are known, so the intervals are over rows"]),
        ({"resampled": "rows", "headline": "text"}, []),
        ({"groups": 2}, ["ravdess: The intervals are over 2 speakers only"]),
        ({"per_class": {"sad": {"support": 3}, "angry": {"support": 0}}}, ["ravdess: All rows have the label 'sad'"]),
    ],
)
def test_figures_that_mean_little_are_named(results, changes, found):
    sentences = caveats(results["corpora"][0] | changes)

    assert [sentence[: len(start)] for sentence, start in zip(sentences, found, strict=True)] == found


@pytest.mark.filterwarnings("error")
def test_labels_without_a_glyph_are_numbered(results, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_mmemo.evaluation.report_plots.FALLBACK_FONTS", ())
    table = results["corpora"][0]
    names = ["angry", "生气", "sad"]
    own = {**table, "name": "电话", "per_class": dict(zip(names, table["per_class"].values()))}

    write_results({**results, "labels": names, "corpora": [own]}, tmp_path)

    assert drawable_labels(names)[0] == ["angry", "#2", "sad"]
    assert "Labels that the plots cannot draw are numbered: #2 生气." in (tmp_path / "report.md").read_text("utf-8")
    assert (tmp_path / "confusion-电话.png").is_file()
