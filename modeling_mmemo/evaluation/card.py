"""The results in a model card or README, written from `results.json` between two marks and never by hand."""

from pathlib import Path
from typing import Any

from modeling_mmemo.evaluation.metrics import MEASURES
from modeling_mmemo.evaluation.report import HEADINGS, markdown_table, percent, timelines_table


BEGIN, END = "<!-- results: written by eval.py -->", "<!-- end of results -->"


def update_card(path: str | Path, results: dict[str, Any]) -> None:
    """Replaces what stands between the marks of a Markdown file by the results.

    Raises:
        ValueError: If the file does not hold the two marks, once each and in their order.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"{path} must hold the lines {BEGIN!r} and {END!r} once each, in this order.")
    path.write_text(f"{before}{BEGIN}\n{results_section(results)}\n{END}{after}", encoding="utf-8")


def results_section(results: dict[str, Any]) -> str:
    """The figures of each test set as it is meant to be scored, and what the fusion gains and loses on pairs."""
    tables = [*results["corpora"], *results["pairs"]]
    rows = [
        [
            f"{table['name']}, {table['headline']}",
            str(table["rows"]),
            *(percent(table["conditions"][table["headline"]][measure]) for measure in MEASURES),
        ]
        for table in tables
    ]
    parts = [
        markdown_table(["test set, given", "rows", *(HEADINGS[measure] for measure in MEASURES)], rows),
        f"In percent, with {results['bootstrap']['level']:.0%} intervals of a bootstrap over speakers, or over rows "
        "where no two speakers are known.",
    ]
    for table in results["pairs"]:
        gain = table["gain"]
        losses = [f"{percent(loss['uar'])} given {condition}" for condition, loss in table["losses"].items()]
        parts.append(
            f"On the simulated pairs {table['name']}, both have {percent(gain['uar'])} points of UAR more than "
            f"the better of the two alone ({gain['over']}). What the other modality loses: {', '.join(losses)}."
        )
    if results["timelines"]:
        parts += [
            "Held-out clips joined to long recordings and followed: the share of the speech with the right label, and "
            "the emotion-diarisation error rate (EDER) beside that of always the most frequent label.",
            timelines_table(results["timelines"]),
        ]
    return "\n\n".join(parts)
