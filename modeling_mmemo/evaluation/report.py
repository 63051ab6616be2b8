"""Results on disk: `results.json`, which the model card is generated from, and a Markdown report with plots."""

import json
import math
import re
from pathlib import Path
from typing import Any, TypeGuard

from modeling_mmemo.evaluation.conditions import AS_GIVEN, CONDITIONS, EVERY_CONDITION, VIDEO_CONDITIONS
from modeling_mmemo.evaluation.metrics import MEASURES
from modeling_mmemo.evaluation.report_plots import drawable_labels, plot_confusion, plot_reliability


HEADINGS = {"wa": "WA", "uar": "UAR", "macro_f1": "macro-F1", "weighted_f1": "weighted F1", "ece": "ECE"}
FOLD_MEASURES = ("wa", "uar", "macro_f1", "weighted_f1")
TIMELINE_HEADINGS = {
    "frame_accuracy": "frame accuracy",
    "eder": "EDER",
    "majority": "EDER of majority label",
    "below_majority": "relative reduction",
}
# A blank or noisy modality may cost the other at most this many points.
MAX_LOSS_POINTS = 0.5
FEW_SPEAKERS = 3


def write_results(results: dict[str, Any], folder: str | Path) -> None:
    """Writes `results.json`, `report.md` and the plots to a folder, which is created if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    for table in (*results["corpora"], *results["pairs"]):
        plot_confusion(table, results["labels"], folder / f"confusion-{_slug(table)}.png")
        plot_reliability(table, folder / f"reliability-{_slug(table)}.png")
    (folder / "report.md").write_text(markdown_report(results), encoding="utf-8")


def summary(results: dict[str, Any]) -> str:
    """Returns one Markdown table of all corpora and pairs under all conditions, and [`label_notes`] below it."""
    rows = [
        [table["name"], condition, str(table["rows"]), *(percent(figures[measure]) for measure in MEASURES)]
        for table in (*results["corpora"], *results["pairs"])
        for condition, figures in table["conditions"].items()
    ]
    table = markdown_table(["test set", "condition", "rows", *(HEADINGS[measure] for measure in MEASURES)], rows)
    return "\n\n".join([table, *label_notes(results)])


def label_notes(results: dict[str, Any]) -> list[str]:
    """
    Returns a sentence for each corpus or pairs that lack labels of the model: their UAR with and without these; and
    one with the mean UAR of corpora that were left out of training in turn.
    """
    notes = [
        f"{table['name']}, {table['headline']}: UAR {percent(table['conditions'][table['headline']]['uar'])} over all "
        f"labels of the model, {percent(present['uar'])} over the {len(present['labels'])} that its rows have "
        f"({', '.join(present['labels'])})."
        for table in (*results["corpora"], *results["pairs"])
        if (present := table.get("present_labels"))
    ]
    if (left_out := results.get("left_out")) is not None:
        notes.append(
            f"Mean of the {len(left_out['corpora'])} corpora left out of training in turn "
            f"({', '.join(left_out['corpora'])}): UAR {100 * left_out['mean']['uar']:.1f} over all labels of the "
            f"model, {100 * left_out['mean_over_present_labels']['uar']:.1f} over those that each corpus has."
        )
    return notes


def markdown_report(results: dict[str, Any]) -> str:
    """Returns the whole report; it links the plots by the names that [`write_results`] uses."""
    bootstrap = results["bootstrap"]
    tables = [*results["corpora"], *results["pairs"]]
    has_mixed_rows = any(table["headline"] == AS_GIVEN for table in tables)
    has_video = any(VIDEO_CONDITIONS.keys() & table["conditions"].keys() for table in tables)
    conditions = [name for name in CONDITIONS if has_video or name not in VIDEO_CONDITIONS]
    conditions += [AS_GIVEN] if has_mixed_rows else []
    parts = [
        f"# Evaluation of {results['model']}",
        f"All figures are percentages with {bootstrap['level']:.0%} intervals of a bootstrap over speakers "
        f"({bootstrap['samples']} resamples; over rows if fewer than two speakers are known). Seed {results['seed']}.",
        summary(results),
        *(_section(table) for table in results["corpora"]),
        *(f"{_section(table)}\n\n{_pairs_section(table)}" for table in results["pairs"]),
        *([_timelines_section(results["timelines"])] if results["timelines"] else []),
        "## Conditions",
        markdown_table(["condition", "input"], [[name, EVERY_CONDITION[name].description] for name in conditions]),
        "## Versions",
        ", ".join(f"{package} {number}" for package, number in results["versions"].items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def percent(figure: dict[str, Any] | None) -> str:
    """Formats a figure in percent, `"73.8 [70.1, 77.0]"`; a dash for one that is undefined."""
    if not is_defined(figure):
        return "-"
    if figure["interval"] is None:
        return f"{100 * figure['value']:.1f}"
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def is_defined(figure: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """Whether a figure has a value; earlier versions wrote NaN for a value without rows."""
    return figure is not None and figure["value"] is not None and not math.isnan(figure["value"])


def caveats(table: dict[str, Any]) -> list[str]:
    """Returns a sentence for each reason why the figures of a corpus or pairs mean little."""
    found = []
    labels = [label for label, row in table["per_class"].items() if row["support"]]
    if len(labels) < 2:
        found.append(
            f"All rows have the label {labels[0] if labels else None!r}: the figures only count how often it is "
            "predicted, and do not measure recognition."
        )
    if table["resampled"] == "rows" and table["headline"] != "text":
        found.append(
            "Fewer than two speakers are known, so the intervals are over rows; they are too narrow if a speaker has "
            "several rows."
        )
    elif table["resampled"] == "speakers" and table["groups"] < FEW_SPEAKERS:
        found.append(f"The intervals are over {table['groups']} speakers only, and therefore rough.")
    return [f"{table['name']}: {sentence}" for sentence in found]


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table whose columns are aligned as plain text too."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
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
    slug, names = _slug(table), list(table["per_class"])
    numbered = ", ".join(f"{drawn} {name}" for drawn, name in zip(drawable_labels(names)[0], names) if drawn != name)
    folds = [
        [name, *(f"{100 * measures[measure]:.1f}" for measure in FOLD_MEASURES)]
        for name, measures in _folds(table).items()
    ]
    languages = [
        [language, str(part["rows"]), percent(part["macro_f1"]), percent(part["uar"])]
        for language, part in table.get("languages", {}).items()
    ]
    return "\n\n".join(
        [
            f"## {table['name']}",
            f"{table['protocol']}: {table['rows']} rows; intervals over {table['groups']} {table['resampled']}. "
            f"Condition: {table['headline']}.",
            *caveats(table),
            *([markdown_table(["fold", *(HEADINGS[measure] for measure in FOLD_MEASURES)], folds)] if folds else []),
            *_present_labels_section(table),
            markdown_table(["label", "rows", "precision", "recall", "F1"], per_class),
            *([markdown_table(["language", "rows", "macro-F1", "UAR"], languages)] if languages else []),
            *([f"Labels that the plots cannot draw are numbered: {numbered}."] if numbered else []),
            f"![confusion matrix](confusion-{slug}.png)\n![reliability diagram](reliability-{slug}.png)",
        ]
    )


def _present_labels_section(table: dict[str, Any]) -> list[str]:
    """Returns a table that compares the figures over all labels with those over the labels of the rows."""
    present = table.get("present_labels")
    if present is None:
        return []
    missing = [label for label in table["per_class"] if label not in present["labels"]]
    rows = [
        [name, *(percent(figures[measure]) for measure in MEASURES)]
        for name, figures in (
            (f"all {len(table['per_class'])} of the model", table["conditions"][table["headline"]]),
            (f"the {len(present['labels'])} of the rows", present),
        )
    ]
    return [
        f"No row has the labels {', '.join(missing)}. Over the labels of the rows, the prediction is the one of them "
        "with the highest score, and their scores are divided by their sum:",
        markdown_table(["labels", *(HEADINGS[measure] for measure in MEASURES)], rows),
    ]


def _folds(table: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the measures of each fold of a cross-validation and their mean; empty for other tables."""
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
            "yes" if 100 * _largest(loss["wa"], loss["uar"]) <= MAX_LOSS_POINTS else "no",
        ]
        for condition, loss in table["losses"].items()
    ]
    shares = [[name, percent(share)] for name, share in conflicting["follows"].items()]
    return "\n\n".join(
        [
            f"Audio and text compared with the better modality alone ({gain['over']}), in points: WA "
            f"{percent(gain['wa'])}, UAR {percent(gain['uar'])}.",
            "Points lost by a modality when the other one is blank or noisy instead of missing:",
            markdown_table(
                ["condition", "compared with", "WA lost", "UAR lost", f"at most {MAX_LOSS_POINTS}"],
                losses,
            ),
            f"Conflicting pairs ({conflicting['rows']}), in which audio and text have different labels; the "
            "prediction follows:",
            markdown_table(["modality", "share of predictions"], shares),
        ]
    )


def _largest(*figures: dict[str, Any] | None) -> float:
    return max((figure["value"] for figure in figures if is_defined(figure)), default=0.0)


def timelines_table(tables: list[dict[str, Any]]) -> str:
    """Returns a Markdown table of timelines; see [`timeline_table`]."""
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
            "Held-out clips are joined in random order to one recording. EDER is the emotion-diarisation error rate: "
            "speech without a prediction, speech with a wrong one, and predictions outside speech, as a share of the "
            "speech. The majority baseline always predicts the most frequent label, exactly where there is speech.",
            timelines_table(tables),
            "\n".join(parts),
        ]
    )
