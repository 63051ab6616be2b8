"""`mmemo report`: summaries as text and JSON, and its errors."""

import json
import sys

import pyarrow as pa
import pytest
from scored import row, write_archive
from typer.testing import CliRunner

from mmemo.archives.archive_report import format_summary
from mmemo.archives.archive_summary import SummaryOptions, summarize_archive
from mmemo.cli import app


COLUMNS = {"agent": pa.string(), "day": pa.string()}
ROWS = [
    row("a.wav", "angry", 0.9, spans=[(0, 36, "angry")], agent="张伟", day="2026-01-31"),
    row("b.wav", "sad", 0.6, spans=[(0, 18, "sad")], agent="张伟", day="2026-02-01"),
    row("c.wav", "uncertain", 0.3, agent="anna", day="n/a", attempts=2, warnings=["c.wav has 2 channels"]),
    row("d.wav", error="/data/d.wav is not readable audio.", agent="ben", day="2026-02-01", attempts=2),
]


@pytest.fixture
def archive(tmp_path):
    return write_archive(tmp_path / "out", ROWS, COLUMNS)


@pytest.fixture
def run():
    """Runs `mmemo report` with arguments."""
    return lambda *arguments: CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_the_text(run, archive):
    result = run(archive, "--by", "agent", "--time", "day", "--top", 2)

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"{archive}: 4 rows, model acme/calls, fingerprint 0123456789ab",
        "  predicted   3",
        "  failed      1 (25.0%)",
        "  hours       0.0",
        "  mean score  0.60",
        "  uncertain   1 (33.3%)",
        "  silence     0 (0.0%)",
        "  speech      0.0 hours in 2 timelines",
        "  after 2 attempts: 1 predicted, 1 failed",
        "",
        "label      rows  share  speech h  of speech",
        "angry         1  33.3%       0.0      66.7%",
        "sad           1  33.3%       0.0      33.3%",
        "uncertain     1  33.3%       0.0       0.0%",
        "",
        "by agent          rows  failed  hours  angry    sad  uncertain",
        "张伟                 2       0    0.0  50.0%  50.0%       0.0%",
        "anna                 1       0    0.0   0.0%   0.0%     100.0%",
        "others (1 value)     1       1    0.0      -      -          -",
        "",
        "month of day  rows  failed  hours   angry     sad  uncertain",
        "2026-01          1       0    0.0  100.0%    0.0%       0.0%",
        "2026-02          2       1    0.0    0.0%  100.0%       0.0%",
        "Rows in no month: 1 with an unreadable day, such as 'n/a'.",
        "",
        "failed: 1                    rows  example",
        "FILE is not readable audio.     1  d.wav",
        "",
        "with warnings: 1     rows  example",
        "FILE has N channels     1  c.wav",
    ]


def test_json(run, archive):
    result = run(archive, "--json", "--by", "agent")

    printed = json.loads(result.stdout)
    expected = summarize_archive(str(archive), SummaryOptions(by=("agent",)))
    assert printed | {"reported": None} == expected | {"reported": None}
    assert printed["by"]["agent"]["groups"][0]["value"] == "张伟"


def test_a_page_in_addition(run, archive, tmp_path):
    page = tmp_path / "new" / "report.html"

    result = run(archive, "--html", page, "--json")

    assert json.loads(result.stdout)["rows"] == 4
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_silence_is_a_label_only_if_it_occurs(tmp_path):
    rows = [row("a.wav", "sad", word="x"), row("b.wav", "silence", word=None)]
    summary = summarize_archive(
        str(write_archive(tmp_path, rows, {"word": pa.string()})), SummaryOptions(by=("word",))
    )

    lines = format_summary(summary).splitlines()

    assert "silence       1  50.0%" in lines
    assert [line.split() for line in lines if line.startswith(("by word", "(missing)"))] == [
        ["by", "word", "rows", "failed", "hours", "angry", "sad", "uncertain", "silence"],
        ["(missing)", "1", "0", "0.0", "0.0%", "0.0%", "0.0%", "100.0%"],
    ]


def test_texts_take_one_line_without_control_characters(tmp_path):
    rows = [row("\x1b[31mred\n.wav", "sad", word="two\nlines\x07" + "x" * 99)]
    summary = summarize_archive(
        str(write_archive(tmp_path, rows, {"word": pa.string()})), SummaryOptions(("word", "id"))
    )

    text = format_summary(summary)

    assert "\x1b" not in text and "\x07" not in text
    assert "\\x1b[31mred .wav  " in text
    assert f"two lines\\x07{'x' * 23} ...  " in text


def test_many_reasons_and_few(run, tmp_path):
    rows = [row(f"{letter}.wav", error=f"the {letter * 3} is broken") for letter in "abcd"]

    lines = run(write_archive(tmp_path, rows), "--top", 1).stdout.splitlines()

    assert lines[-2:] == ["the aaa is broken      1  a.wav", "others (3 reasons)     3"]


def test_no_model_name(tmp_path):
    folder = write_archive(tmp_path, [row("a.wav", "sad")], model=None, revision=None, fingerprint=None)

    first = format_summary(summarize_archive(str(folder))).splitlines()[0]

    assert first == f"{tmp_path}: 1 rows, the embedded model"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--by", "agnet"], 1, "Error: --by agnet is not a column of "),
        (["--time", "date"], 1, "choose one of ['agent', 'day', 'id', 'path', 'label', 'score', 'duration', 'error'"),
        (["--time", "day", "--period", "year"], 2, "'month', 'week', 'day', 'weekday', 'hour'"),
        (["--top", 0], 2, "Invalid value for '--top'"),
        (["--time-format", "%Y"], 1, "Error: time_format='%Y' needs time"),
    ],
)
def test_invalid_options_are_one_sentence(run, archive, arguments, code, message):
    result = run(archive, *arguments)

    assert result.exit_code == code
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_no_archive(run, tmp_path):
    result = run(tmp_path)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"Error: {tmp_path} has no .manifest.json; pass the folder that mmemo predict --output has written.\n"
    )


def test_a_missing_matplotlib_is_named(run, archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "mmemo.archives.archive_page", raising=False)

    result = run(archive, "--html", tmp_path / "report.html")

    assert (result.exit_code, result.stderr) == (
        1,
        "Error: Reports as HTML need matplotlib: pip install 'mmemo[archives]'.\n",
    )


def test_help_names_the_law(run):
    assert "AI Act, Art. 5(1)(f)" in " ".join(run("--help").stdout.replace("│", " ").split())
