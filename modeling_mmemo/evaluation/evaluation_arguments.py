"""Command-line arguments of an evaluation."""

from dataclasses import dataclass, field

from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.evaluation.conditions import CONDITIONS


@dataclass
class EvaluationArguments:
    """
    Arguments of `eval.py`, documented by their help texts.

    Raises:
        ValueError: If a corpus, pair or condition is unknown, if nothing is selected, or if a number is out of range.
    """

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a model; the embedded model by default."}
    )
    data_dir: str = field(default="data", metadata={"help": "Folder with the corpora."})
    corpora: list[str] = field(
        default_factory=list, metadata={"help": f"Corpora to evaluate on, among {', '.join(CORPORA)}."}
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "Simulated pairs to evaluate on, AUDIO+TEXT: audio of one corpus, text of another."},
    )
    timelines: list[str] = field(
        default_factory=list,
        metadata={"help": "Corpora, or pairs AUDIO+TEXT, whose clips are joined to one recording with a timeline."},
    )
    conditions: list[str] = field(
        default_factory=lambda: list(CONDITIONS),
        metadata={"help": "Conditions to evaluate, where they apply; all by default."},
    )
    output_dir: str = field(
        default="results", metadata={"help": "Output folder of results.json, report.md and the plots."}
    )
    cards: list[str] = field(
        default_factory=list,
        metadata={"help": "Markdown files whose results section is updated, such as model_card.md."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "Evaluate this many random rows of each corpus; all by default."}
    )
    batch_size: int = field(default=16, metadata={"help": "Items per batch."})
    seed: int = field(default=0, metadata={"help": "Seed of noise, shuffling, pairing, sampling and the bootstrap."})

    def __post_init__(self):
        if not self.corpora and not self.pairs and not self.timelines:
            raise ValueError("Nothing to evaluate; pass --corpora, --pairs or --timelines.")
        for pair in self.pairs:
            if pair.count("+") != 1:
                raise ValueError(f"pairs={self.pairs}: {pair!r} must be AUDIO+TEXT, two corpora such as ravdess+meld.")
        named = self.corpora + [name for pair in self.pairs + self.timelines for name in pair.split("+")]
        if unknown := [name for name in named if name not in CORPORA]:
            raise ValueError(f"Unknown corpora {unknown}; choose among {sorted(CORPORA)}.")
        if unknown := [name for name in self.conditions if name not in CONDITIONS]:
            raise ValueError(f"Unknown conditions {unknown}; choose among {list(CONDITIONS)}.")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit} must be at least 2, which the intervals need; or leave it out.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
