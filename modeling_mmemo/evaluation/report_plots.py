"""Plots of a report, drawn from the tables of `results.json`; needs no display."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font


# Fonts for labels in other scripts, where they are installed.
FALLBACK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


def drawable_labels(labels: list[str]) -> tuple[list[str], list[str]]:
    """
    Returns the labels as they are drawn, and the font families to draw them with.

    A label with a glyph that no font has is drawn as its number in the tables of the report, counted from 1: `"#2"`.
    """
    installed = set(fontManager.get_font_names())
    families = ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)]
    glyphs = set().union(*(get_font(findfont(FontProperties(family=name))).get_charmap() for name in families))
    drawn = [
        label if all(ord(letter) in glyphs for letter in label) else f"#{number}"
        for number, label in enumerate(labels, start=1)
    ]
    return drawn, families


def plot_confusion(table: dict[str, Any], labels: list[str], path: str | Path) -> None:
    """Plots the confusion matrix of a table: shares of each true label, with the counts below."""
    labels, families = drawable_labels(labels)
    counts = np.array(table["confusion"]["counts"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.2 + 0.8 * len(labels), 0.8 + 0.75 * len(labels)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for truth, predicted in np.ndindex(counts.shape):
        # White on dark cells, black on light ones.
        axes.text(
            predicted,
            truth,
            f"{shares[truth, predicted]:.0%}\n{counts[truth, predicted]}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[truth, predicted] > 0.5 else "black",
        )
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right", family=families)
    axes.set_yticks(range(len(labels)), labels, family=families)
    axes.set(xlabel="predicted", ylabel="true")
    _set_title(axes, f"{table['name']} ({table['headline']})")
    figure.savefig(path, dpi=120)


def plot_reliability(table: dict[str, Any], path: str | Path) -> None:
    """Plots the reliability diagram of a table: accuracy by confidence with intervals, and the number of rows."""
    bins = table["reliability"]
    confidence = np.array([entry["confidence"] for entry in bins])
    accuracy = np.array([entry["accuracy"]["value"] for entry in bins])
    ends = np.array([entry["accuracy"]["interval"] or [entry["accuracy"]["value"]] * 2 for entry in bins]).T
    rows = np.array([entry["rows"] for entry in bins])
    figure = Figure(figsize=(4.5, 5.5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    top.plot([0, 1], [0, 1], linestyle="--", color="gray", label="calibrated")
    # A percentile interval may not contain the value itself; error bars must not be negative.
    errors = np.maximum([accuracy - ends[0], ends[1] - accuracy], 0)
    top.errorbar(confidence, accuracy, yerr=errors, marker="o", capsize=3, label="accuracy, 95 % interval")
    ece = table["conditions"][table["headline"]]["ece"]["value"]
    top.set(ylabel="accuracy", ylim=(-0.02, 1.02))
    _set_title(top, f"{table['name']} ({table['headline']}), ECE {ece:.1%}")
    top.legend(loc="upper left")
    bottom.bar(confidence, rows, width=0.03, color="gray")
    bottom.set(xlabel="confidence", ylabel="rows", xlim=(0, 1))
    figure.savefig(path, dpi=120)


def _set_title(axes: Any, title: str) -> None:
    """Sets a title; letters that no font has are left out, since the plot is named in its file and in the report."""
    (drawn,), families = drawable_labels([title])
    axes.set_title(title if drawn == title else title[title.rfind("(") :], family=families, parse_math=False)
