"""
`mmemo report`: the summary of an archive as a table of text.

Deliberate choices:
- Tables are aligned by the width that a terminal gives to characters; Chinese ones take two columns.
- Values of columns and messages are shown on one line, without control characters.
"""

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmemo.archives.archive_summary import SummaryOptions, summarize_archive
from mmemo.timeline.windows import SILENCE, UNCERTAIN


MAX_CELL_WIDTH = 40
MAX_REASON_WIDTH = 90
MISSING = "(missing)"


def report(folder: str, options: SummaryOptions, as_json: bool = False, page: Path | None = None) -> str:
    """
    Returns the report on an archive, and writes it as a web page.

    Args:
        folder (`str`), options ([`SummaryOptions`]): See [`summarize_archive`].
        as_json (`bool`, *optional*, defaults to `False`): Whether to return JSON rather than text.
        page (`Path`, *optional*): File for the web page.

    Raises:
        ImportError: If the page needs matplotlib.
        ValueError, OSError: See [`summarize_archive`].
    """
    if page is not None:
        # A missing matplotlib is reported before the files are read.
        from mmemo.archives.archive_page import write_page
    summary = summarize_archive(folder, options)
    if page is not None:
        write_page(summary, page)
    return json.dumps(summary, ensure_ascii=False, indent=2) if as_json else format_summary(summary)


def format_summary(summary: dict[str, Any]) -> str:
    """Returns a summary as text; see [`summarize_archive`]."""
    sections = [
        _overview(summary),
        _label_table(summary),
        *(_group_table(f"by {column}", groups) for column, groups in summary["by"].items()),
        *([] if summary["time"] is None else [_period_table(summary["time"])]),
        *(_reason_table(summary, kind) for kind in ("failures", "warnings") if summary[kind]["rows"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def describe_model(summary: dict[str, Any]) -> str:
    """Returns the model and the fingerprint of the job."""
    model = "the embedded model" if summary["model"] is None else f"model {summary['model']}"
    revision = f" at {summary['revision']}" if summary["revision"] else ""
    return f"{model}{revision}" + (f", fingerprint {summary['fingerprint'][:12]}" if summary["fingerprint"] else "")


def describe_gaps(time: dict[str, Any]) -> str | None:
    """Returns how many rows are in no period, and why; `None` if all of them are in one."""
    gaps = [f"{time['missing']:,} without {time['column']}"] if time["missing"] else []
    if unreadable := time["unreadable"]["rows"]:
        gaps.append(f"{unreadable:,} with an unreadable {time['column']}, such as {time['unreadable']['example']!r}")
    return f"Rows in no {time['period']}: {', '.join(gaps)}." if gaps else None


def describe_others(others: dict[str, Any], unit: str) -> str:
    """Returns the name of the groups or reasons that are summed."""
    return f"others ({others['number']:,} {unit}{'s' * (others['number'] != 1)})"


def percentage(share: float | None) -> str:
    """Returns a share as a percentage, such as "4.3%"."""
    return "-" if share is None else f"{share:.1%}"


def shown_labels(summary: dict[str, Any]) -> list[str]:
    """Returns the labels of the tables: those of the model and "uncertain", and "silence" if it occurs."""
    labels = summary["labels"]
    return [label for label, share in labels.items() if label != SILENCE or share["rows"]]


def _overview(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{one_line(summary['output'])}: {summary['rows']:,} rows, {describe_model(summary)}"
    labels = summary["labels"]
    facts = {
        "predicted": f"{summary['predicted']:,}",
        "failed": _count(summary["failed"]),
        "hours": f"{summary['hours']:,.1f}",
        "mean score": _score(summary["mean_score"]),
        UNCERTAIN: _count(labels[UNCERTAIN]),
        SILENCE: _count(labels[SILENCE]),
    }
    if summary["speech"] is not None:
        facts["speech"] = f"{summary['speech']['hours']:,.1f} hours in {summary['speech']['rows']:,} timelines"
    for name, value in facts.items():
        yield f"  {name:<10}  {value}"
    retried = [found for found in summary["attempts"] if found["attempts"] > 1]
    for found in retried:
        yield f"  after {found['attempts']} attempts: {found['predicted']:,} predicted, {found['failed']:,} failed"


def _label_table(summary: dict[str, Any]) -> list[str]:
    speech = summary["speech"]
    header = ["label", "rows", "share", *([] if speech is None else ["speech h", "of speech"])]
    rows = []
    for label in shown_labels(summary):
        share = summary["labels"][label]
        row = [label, f"{share['rows']:,}", percentage(share["share"])]
        if speech is not None:
            spoken = speech["labels"].get(label)
            row += ["", ""] if spoken is None else [f"{spoken['hours']:,.1f}", percentage(spoken["share"])]
        rows.append(row)
    return _table([header, *rows])


def _group_table(title: str, groups: dict[str, Any]) -> list[str]:
    named = [(MISSING if group["value"] is None else group["value"], group) for group in groups["groups"]]
    if groups["others"] is not None:
        named.append((describe_others(groups["others"], "value"), groups["others"]))
    return _figures_table(title, named)


def _period_table(time: dict[str, Any]) -> list[str]:
    title = f"{time['period']} of {time['column']}"
    gaps = describe_gaps(time)
    return [
        *_figures_table(title, [(period["name"], period) for period in time["periods"]]),
        *([] if gaps is None else [gaps]),
    ]


def _figures_table(title: str, named: list[tuple[str, dict[str, Any]]]) -> list[str]:
    labels = [
        label
        for label in (named[0][1]["labels"] if named else ())
        if label != SILENCE or any(figures["labels"][label]["rows"] for _, figures in named)
    ]
    rows = [
        [
            name,
            f"{figures['rows']:,}",
            f"{figures['failed']['rows']:,}",
            f"{figures['hours']:,.1f}",
            *(percentage(figures["labels"][label]["share"]) for label in labels),
        ]
        for name, figures in named
    ]
    return _table([[title, "rows", "failed", "hours", *labels], *rows])


def _reason_table(summary: dict[str, Any], kind: str) -> list[str]:
    found = summary[kind]
    title = f"{'failed' if kind == 'failures' else 'with warnings'}: {found['rows']:,}"
    rows = [
        [_short(one["reason"], MAX_REASON_WIDTH), f"{one['rows']:,}", _short(one["example"]["id"], MAX_CELL_WIDTH)]
        for one in found["reasons"]
    ]
    if found["others"] is not None:
        rows.append([describe_others(found["others"], "reason"), f"{found['others']['rows']:,}", ""])
    return _table([[title, "rows", "example"], *rows], right=(1,))


def _table(rows: list[list[str]], right: tuple[int, ...] | None = None) -> list[str]:
    """Returns aligned lines; the columns `right`, by default all but the first, are aligned to the right."""
    cells = [[_short(cell, MAX_REASON_WIDTH if right else MAX_CELL_WIDTH) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells)]
    lines = []
    for row in cells:
        padded = []
        for place, (cell, width) in enumerate(zip(row, widths)):
            padding = " " * (width - _width(cell))
            is_right = place > 0 if right is None else place in right
            padded.append(padding + cell if is_right else cell + padding)
        lines.append("  ".join(padded).rstrip())
    return lines


def one_line(text: str) -> str:
    """Returns a text on one line, with escapes in place of control characters."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.split()))


def _short(text: str, width: int) -> str:
    line = one_line(text)
    if _width(line) <= width:
        return line
    while _width(line) > width - 4:
        line = line[:-1]
    return f"{line} ..."


def _width(text: str) -> int:
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _count(share: dict[str, Any]) -> str:
    return f"{share['rows']:,} ({percentage(share['share'])})"


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"
