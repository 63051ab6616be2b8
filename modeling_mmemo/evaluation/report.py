"""Writing results: `results.json`, from which the model card takes its numbers, and a Markdown report with plots."""

import json
import re
from pathlib import Path
from typing import Any

from modeling_mmemo.evaluation.conditions import CONDITIONS
from modeling_mmemo.evaluation.metrics import MEASURES
from modeling_mmemo.evaluation.report_plots import plot_confusion, plot_reliability


HEADINGS = {"wa": "WA", "uar": "UAR", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "ece": "ECE"}
_FOLD_MEASURES = ("wa", "uar", "macro_f1", "weighted_f1")
TIMELINE_HEADINGS = {
    "frame_accuracy": "frame accuracy",
    "eder": "EDER",
    "majority": "EDER of the majority",
    "below_majority": "below it by",
}
# A blank or noisy modality may cost the other this much.
BAR_POINTS = 0.5


def write_results(results: dict[str, Any], folder: str | Path) -> None:
    """Writes `results.json`, `report.md` and the plots into a folder, made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    for table in (*results["corpora"], *results["pairs"]):
        plot_confusion(table, results["labels"], folder / f"confusion-{_slug(table)}.png")
        plot_reliability(table, folder / f"reliability-{_slug(table)}.png")
    (folder / "report.md").write_text(markdown_report(results), encoding="utf-8")


def summary(results: dict[str, Any]) -> str:
    """One Markdown table of all corpora and pairs, under every condition."""
    rows = [
        [table["name"], condition, str(table["rows"]), *(percent(figures[measure]) for measure in MEASURES)]
        for table in (*results["corpora"], *results["pairs"])
        for condition, figures in table["conditions"].items()
    ]
    return markdown_table(["test set", "given", "rows", *(HEADINGS[measure] for measure in MEASURES)], rows)


def markdown_report(results: dict[str, Any]) -> str:
    """The whole report; it links the plots as [`write_results`] names them."""
    bootstrap = results["bootstrap"]
    parts = [
        f"# Evaluation of {results['model']}",
        "All figures are percentages, with the "
        f"{bootstrap['level']:.0%} interval of a bootstrap over speakers ({bootstrap['samples']} resamples; over rows "
        f"where fewer than two speakers are known). Seed {results['seed']}.",
        summary(results),
        *(_section(table) for table in results["corpora"]),
        *(f"{_section(table)}\n\n{_pairs_section(table)}" for table in results["pairs"]),
        *([_timelines_section(results["timelines"])] if results["timelines"] else []),
        "## What was given",
        markdown_table(["given", "what is done"], [[name, what.description] for name, what in CONDITIONS.items()]),
        "## Versions",
        ", ".join(f"{package} {number}" for package, number in results["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def percent(figure: dict[str, Any] | None) -> str:
    """A figure in percent, `"73.8 [70.1, 77.0]"`; a dash for `None`."""
    if figure is None:
        return "-"
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns also line up as plain text."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths))} |" for line in (headings, rule, *rows)
    )


def _slug(table: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", table["name"])


def _section(table: dict[str, Any]) -> str:
    per_class = [
        [label, str(measures["support"]), *(percent(measures[name]) for name in ("precision", "recall", "f1"))]
        for label, measures in table["per_class"].items()
    ]
    slug = _slug(table)
    folds = [
        [name, *(f"{100 * measures[measure]:.1f}" for measure in _FOLD_MEASURES)]
        for name, measures in _folds(table).items()
    ]
    return "\n\n".join(
        [
            f"## {table['name']}",
            f"{table['protocol']}: {table['rows']} rows; intervals over {table['groups']} {table['resampled']}. "
            f"Given here: {table['headline']}.",
            *([markdown_table(["fold", *(HEADINGS[measure] for measure in _FOLD_MEASURES)], folds)] if folds else []),
            markdown_table(["label", "rows", "precision", "recall", "F1"], per_class),
            f"![confusion matrix](confusion-{slug}.png)\n![reliability diagram](reliability-{slug}.png)",
        ]
    )


def _folds(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The measures of each fold of a cross-validation and their mean; nothing for other tables."""
    if "folds" not in table:
        return {}
    each = {str(fold): measures for fold, measures in enumerate(table["folds"]["each"], start=1)}
    return each | {"mean": table["folds"]["mean"]}


def _pairs_section(table: dict[str, Any]) -> str:
    gain, conflicting = table["gain"], table["conflicting"]
    losses = [
        [
            condition,
            loss["against"],
            percent(loss["wa"]),
            percent(loss["uar"]),
            "yes" if 100 * max(loss["wa"]["value"], loss["uar"]["value"]) <= BAR_POINTS else "no",
        ]
        for condition, loss in table["losses"].items()
    ]
    shares = [[name, percent(share)] for name, share in conflicting["follows"].items()]
    return "\n\n".join(
        [
            f"Both over the better alone ({gain['over']}), in points: WA {percent(gain['wa'])}, "
            f"UAR {percent(gain['uar'])}.",
            "What the good modality loses beside a blank or noisy one, in points:",
            markdown_table(
                ["given", "against alone", "WA lost", "UAR lost", f"at most {BAR_POINTS}"],
                losses,
            ),
            f"Conflicting pairs ({conflicting['rows']}), in which the words have another label; the answer follows:",
            markdown_table(["modality", "of the answers"], shares),
        ]
    )


def timelines_table(tables: list[dict[str, Any]]) -> str:
    """A Markdown table of followed recordings; see [`timeline_table`]."""
    rows = [
        [table["name"], f"{table['minutes']:.1f}", *(percent(table[measure]) for measure in TIMELINE_HEADINGS)]
        for table in tables
    ]
    return markdown_table(["recording", "minutes", *TIMELINE_HEADINGS.values()], rows)


def _timelines_section(tables: list[dict[str, Any]]) -> str:
    parts = [
        f"- {table['name']}: {table['protocol']}; {table['rows']} clips with {table['changes']} changes of emotion; "
        f"EDER = missed {percent(table['missed'])} + confused {percent(table['confused'])} + false alarm "
        f"{percent(table['false_alarm'])}."
        for table in tables
    ]
    return "\n\n".join(
        [
            "## Timelines",
            "Held-out clips in random order, joined to one recording and followed. EDER is the emotion-diarisation "
            "error rate: the speech without an answer or with a wrong one, and the answers where nobody speaks, as a "
            "share of the speech. The majority always answers with the most frequent label, where somebody speaks.",
            timelines_table(tables),
            "\n".join(parts),
        ]
    )
