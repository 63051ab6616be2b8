"""
`mmemo report --html`: the summary of an archive as a web page.

Deliberate choices:
- One file without scripts and external resources: it can be sent by mail and opened offline.
- Bars are HTML, so that they and their labels fit any screen and any script; the plot over time is SVG of matplotlib.
- Every text from the archive is escaped, and the page's content security policy forbids scripts besides.
"""

import html
import io
import warnings
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmemo.archives.archive_report import (
    MISSING,
    describe_gaps,
    describe_model,
    describe_others,
    one_line,
    percentage,
    shown_labels,
)
from mmemo.timeline.windows import SILENCE, UNCERTAIN


try:
    import matplotlib
    import numpy as np
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    from mmemo.plots import UNCERTAIN_HATCH, label_colors
except ModuleNotFoundError as error:
    raise ImportError("Reports as HTML need matplotlib: pip install 'mmemo[archives]'.") from error


SILENCE_COLOR = "#bbbbbb"
# Of lines that are visible on white and on black.
LINE_COLOR = "#888888"
PLOT_INCHES = 11.0, 3.6
MAX_TICKS = 12
# More periods than these are shown on request.
MAX_OPEN_PERIODS = 24
# Text of the SVG remains text, in the colour and font of the page.
PLOT_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mmemo",
    "axes.edgecolor": LINE_COLOR,
    "xtick.color": LINE_COLOR,
    "ytick.color": LINE_COLOR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.8,
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --ink: #1c1e21; --soft: #5f656d; --line: #dcdfe3; --back: #f5f6f8; --card: #ffffff; --track: #eceef1; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8eaed; --soft: #a2a9b2; --line: #363b42; --back: #15181c; --card: #1e2227; --track: #2d3238; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: .94rem/1.45 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; font-variant-numeric: tabular-nums; }}
h1 {{ margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ margin: 0 0 .75rem; font-size: 1.1rem; overflow-wrap: anywhere; }}
p {{ margin: .25rem 0; }}
.soft, small {{ color: var(--soft); }}
small {{ font-size: .78rem; white-space: nowrap; }}
section, .facts > div {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }}
section {{ margin-top: 1rem; padding: 1rem; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; margin: 1rem 0 0; }}
.facts > div {{ padding: .6rem .8rem; }}
.facts dt {{ color: var(--soft); font-size: .85rem; }}
.facts dd {{ margin: 0; font-size: 1.35rem; font-weight: 600; }}
.facts dd small {{ display: block; font-weight: 400; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .3rem .55rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }}
th:first-child, td:first-child {{ padding-left: 0; text-align: left; }}
tr:last-child td {{ border-bottom: 0; }}
td small {{ display: block; }}
.reasons td:last-child, .reasons th:last-child {{ text-align: left; }}
.reasons td {{ overflow-wrap: anywhere; }}
.reasons small {{ white-space: normal; }}
.figures th:first-child, .figures td:first-child {{ min-width: 8rem; max-width: 16rem; position: sticky; left: 0;
  overflow-wrap: anywhere; background: var(--card); }}
.emotion {{ display: flex; flex-wrap: wrap; gap: 0 1rem; }}
.emotion span {{ flex: 0 0 6.5rem; }}
.emotion .track {{ flex: 1 1 9rem; }}
.emotions td:first-child {{ width: 60%; min-width: 8.5rem; }}
.track, .stack {{ position: relative; display: flex; height: .75rem; margin: .3rem 0; overflow: hidden;
  border-radius: .2rem; background: var(--track); }}
.track i, .stack i {{ height: 100%; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
.track b {{ position: absolute; top: calc(50% - 1px); height: 2px; background: var(--ink); opacity: .75; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0 0 .6rem; padding: 0; list-style: none; }}
.legend i {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border-radius: .15rem;
  vertical-align: -.08rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
svg {{ display: block; width: 100%; min-width: 44rem; height: auto; }}
svg text {{ fill: var(--ink) !important; font-family: inherit !important; }}
footer {{ margin: 1rem 0; }}
summary {{ cursor: pointer; color: var(--soft); margin: .6rem 0; }}
{colors}
@media print {{
  :root {{ --ink: #000; --soft: #444; --line: #bbb; --back: #fff; --card: #fff; --track: #eee; }}
  html {{ font-size: 62%; }}
  body {{ max-width: none; padding: 0; }}
  .wide {{ overflow: visible; }}
  .figures td:first-child {{ position: static; }}
  svg {{ min-width: 0; }}
  tr, .facts, figure, svg {{ break-inside: avoid; }}
  h2 {{ break-after: avoid; }}
  section {{ border: 0; padding: .5rem 0; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def write_page(summary: dict[str, Any], path: Path) -> None:
    """
    Writes the page of a summary.

    Args:
        summary (`dict`): See [`summarize_archive`].
        path (`Path`): The file, which is overwritten; its folder is created if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(build_page(summary), encoding="utf-8")


def build_page(summary: dict[str, Any]) -> str:
    """Returns the page of a summary as HTML; see [`summarize_archive`]."""
    palette = Palette(shown_labels(summary))
    time = summary["time"]
    sections = [
        _header(summary),
        _section("Emotions", _label_bars(summary, palette)),
        *([] if time is None else [_section(f"By {time['period']} of {time['column']}", _over_time(time, palette))]),
        *(_section(f"By {column}", _groups(groups, palette)) for column, groups in summary["by"].items()),
        *(_reasons(summary, kind) for kind in ("failures", "warnings") if summary[kind]["rows"]),
        _notes(summary),
    ]
    title = f"Emotions in {summary['output']}"
    return PAGE.format(title=_text(title), colors=palette.css(), body="\n".join(sections))


class Palette:
    """
    Colours of labels, those of the other plots of this package.

    Args:
        labels (`list[str]`): The labels, in order.
    """

    def __init__(self, labels: list[str]):
        self.labels = labels
        colors = {**label_colors(labels), SILENCE: SILENCE_COLOR}
        self.colors = {label: to_hex(colors[label]) for label in labels}

    def css(self) -> str:
        """Returns the style of each label's class."""
        rules = [f".c{number} {{ background: {color}; }}" for number, color in enumerate(self.colors.values())]
        if UNCERTAIN in self.colors:
            color = self.colors[UNCERTAIN]
            rules[self.labels.index(UNCERTAIN)] = (
                f".c{self.labels.index(UNCERTAIN)} {{ background: "
                f"repeating-linear-gradient(-45deg, {color} 0 3px, {color}77 3px 6px); }}"
            )
        return "\n".join(rules)

    def mark(self, label: str, rest: str = "") -> str:
        """Returns an empty element in the colour of a label."""
        return f'<i class="c{self.labels.index(label)}"{rest}></i>'

    def legend(self) -> str:
        """Returns the colours with their labels."""
        items = "".join(f"<li>{self.mark(label)}{_text(label)}</li>" for label in self.labels)
        return f'<ul class="legend">{items}</ul>'

    def stack(self, figures: dict[str, Any]) -> str:
        """Returns the shares of the labels as one bar."""
        found = {label: figures["labels"][label]["share"] or 0 for label in self.labels}
        parts = (
            self.mark(label, f' style="width: {share:.2%}" title="{_text(label)} {percentage(share)}"')
            for label, share in found.items()
            if share
        )
        return f'<div class="stack">{"".join(parts)}</div>'


def _header(summary: dict[str, Any]) -> str:
    labels, speech = summary["labels"], summary["speech"]
    facts = [
        ("recordings", f"{summary['rows']:,}", ""),
        ("predicted", f"{summary['predicted']:,}", ""),
        ("failed", f"{summary['failed']['rows']:,}", _with_interval(summary["failed"])),
        ("hours", f"{summary['hours']:,.1f}", "" if speech is None else f"{speech['hours']:,.1f} of speech"),
        (UNCERTAIN, f"{labels[UNCERTAIN]['rows']:,}", _with_interval(labels[UNCERTAIN])),
        (SILENCE, f"{labels[SILENCE]['rows']:,}", percentage(labels[SILENCE]["share"])),
        ("mean score", "-" if summary["mean_score"] is None else f"{summary['mean_score']:.2f}", ""),
    ]
    tiles = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f'<small>{note}</small>' if note else ''}</dd></div>"
        for name, value, note in facts
    )
    started = f", job started {_time(summary['created'])}" if summary["created"] else ""
    return (
        f"<header><h1>Emotions in {_text(summary['output'])}</h1>"
        f'<p class="soft">Predicted by {_text(describe_model(summary))}{started}. '
        f"Reported {_time(summary['reported'])}.</p>"
        f'<dl class="facts">{tiles}</dl></header>'
    )


def _label_bars(summary: dict[str, Any], palette: Palette) -> str:
    speech = summary["speech"]
    highest = max((share["interval"] or [0, 0])[1] for share in summary["labels"].values()) or 1
    rows = []
    for label in palette.labels:
        share = summary["labels"][label]
        width = (share["share"] or 0) / highest
        low, high = (end / highest for end in share["interval"] or (0, 0))
        bar = palette.mark(label, f' style="width: {width:.2%}"')
        whisker = f'<b style="left: {low:.2%}; width: {high - low:.2%}"></b>'
        cells = [
            _cell(f'<div class="emotion"><span>{_text(label)}</span><div class="track">{bar}{whisker}</div></div>'),
            _share_cell(share),
            _cell(f"{share['rows']:,}"),
        ]
        if speech is not None:
            spoken = speech["labels"].get(label)
            cells += [
                _cell("" if spoken is None else percentage(spoken["share"])),
                _cell("" if spoken is None else f"{spoken['hours']:,.1f}"),
            ]
        rows.append(cells)
    header = ["", "share", "recordings", *([] if speech is None else ["share of speech", "hours of speech"])]
    return _table(header, rows, "emotions")


def _over_time(time: dict[str, Any], palette: Palette) -> str:
    periods, gaps = time["periods"], describe_gaps(time)
    note = "" if gaps is None else f'<p class="soft">{_text(gaps)}</p>'
    if not periods:
        return note
    name = f"Recordings and shares of emotions by {time['period']}"
    table = _figures_table(time["period"], [(period["name"], period) for period in periods], palette)
    is_open = " open" if len(periods) <= MAX_OPEN_PERIODS else ""
    return (
        f'{palette.legend()}<div class="wide" role="img" aria-label="{name}">{plot_periods(periods, palette)}</div>'
        f"{note}<details{is_open}><summary>Figures of {len(periods):,} {time['period']}s</summary>{table}</details>"
    )


def plot_periods(periods: list[dict[str, Any]], palette: Palette) -> str:
    """
    Plots the number of rows and the shares of labels by period, with a gap where periods are missing.

    Args:
        periods (`list[dict]`): At least one period of a summary.
        palette ([`Palette`]): The labels and their colours.

    Returns:
        `str`: An SVG element.
    """
    gaps = [after["number"] - before["number"] > 1 for before, after in pairwise(periods)]
    places = np.cumsum([0, *(1 + gap for gap in gaps)])
    shares = np.array(
        [[period["labels"][label]["share"] for label in palette.labels] for period in periods], dtype=float
    )
    # Each period has a point at its start, one at its end, and an empty one if a gap follows.
    drawn = np.array([[True, True, gap] for gap in [*gaps, False]])
    times = (places[:, None] + [-0.5, 0.5, 0.5])[drawn]
    counts = np.array([[period["rows"], period["rows"], 0] for period in periods])[drawn]
    points = np.stack([shares, shares, np.full_like(shares, np.nan)], axis=1)[drawn]
    with matplotlib.rc_context(PLOT_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure = Figure(figsize=PLOT_INCHES, layout="constrained")
        above, below = figure.subplots(2, sharex=True, height_ratios=[1, 2.6])
        above.fill_between(times, counts, color=LINE_COLOR, linewidth=0)
        above.set(ylabel="recordings", ylim=(0, 1.08 * counts.max()))
        above.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3, integer=True))
        above.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
        areas = below.stackplot(times, points.T, colors=palette.colors.values(), linewidth=0)
        for label, area in zip(palette.labels, areas):
            if label == UNCERTAIN:
                area.set(hatch=UNCERTAIN_HATCH, edgecolor="white")
        step = -(-len(periods) // MAX_TICKS)
        below.set_xticks(places[::step], [period["name"] for period in periods[::step]])
        below.set(ylabel="share", xlim=(times[0], times[-1]), ylim=(0, 1))
        below.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    return svg[svg.index("<svg") :]


def _groups(groups: dict[str, Any], palette: Palette) -> str:
    named = [(MISSING if group["value"] is None else group["value"], group) for group in groups["groups"]]
    if groups["others"] is not None:
        named.append((describe_others(groups["others"], "value"), groups["others"]))
    return palette.legend() + _figures_table("", named, palette)


def _figures_table(title: str, named: Iterable[tuple[str, dict[str, Any]]], palette: Palette) -> str:
    rows = [
        [
            _cell(f"{_text(name)}{palette.stack(figures)}"),
            _cell(f"{figures['rows']:,}"),
            _cell(f"{figures['failed']['rows']:,}"),
            _cell(f"{figures['hours']:,.1f}"),
            *(_share_cell(figures["labels"][label]) for label in palette.labels),
        ]
        for name, figures in named
    ]
    return _table([title, "recordings", "failed", "hours", *palette.labels], rows, "figures")


def _reasons(summary: dict[str, Any], kind: str) -> str:
    found = summary[kind]
    rows = [
        [
            _cell(_text(one["reason"])),
            _cell(f"{one['rows']:,}"),
            _cell(f"{_text(one['example']['id'])}<small>{_text(one['example']['message'])}</small>"),
        ]
        for one in found["reasons"]
    ]
    if found["others"] is not None:
        others = describe_others(found["others"], "reason")
        rows.append([_cell(others), _cell(f"{found['others']['rows']:,}"), _cell("")])
    name = "Failed" if kind == "failures" else "With warnings"
    attempts = "".join(
        f" After {tried['attempts']} attempts: {tried['predicted']:,} predicted, {tried['failed']:,} failed."
        for tried in summary["attempts"]
        if tried["attempts"] > 1 and kind == "failures"
    )
    note = f'<p class="soft">{attempts.strip()}</p>' if attempts else ""
    return _section(
        f"{name}: {found['rows']:,} recordings", note + _table(["reason", "recordings", "example"], rows, "reasons")
    )


def _notes(summary: dict[str, Any]) -> str:
    notes = [
        "Shares of emotions are of the predicted recordings.",
        "Small figures and the lines on bars are 95 % Wilson intervals: of few recordings, shares are inexact.",
        f"Recordings are {UNCERTAIN} below the threshold of the job or without speech.",
        *([] if summary["speech"] is None else ["Shares of speech are of the speaking time in the timelines."]),
        "All labels are predictions of a model.",
    ]
    return f'<footer class="soft"><p>{" ".join(notes)}</p></footer>'


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def _table(header: list[str], rows: Iterable[list[str]], kind: str) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    return f"<td>{content}</td>"


def _share_cell(share: dict[str, Any]) -> str:
    return _cell(f"{percentage(share['share'])}<small>{_interval(share)}</small>")


def _with_interval(share: dict[str, Any]) -> str:
    return f"{percentage(share['share'])} ({_interval(share)})" if share["interval"] else ""


def _interval(share: dict[str, Any]) -> str:
    return "" if share["interval"] is None else "\u2013".join(f"{100 * end:.1f}" for end in share["interval"])


def _time(text: str) -> str:
    """Returns a time in ISO 8601 to the minute."""
    return _text(f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}")


def _text(text: str) -> str:
    return html.escape(one_line(text))
