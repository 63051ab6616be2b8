"""What an evaluation can be asked for, on the command line."""

from dataclasses import dataclass, field

from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.evaluation.conditions import CONDITIONS


@dataclass
class EvaluationArguments:
    """
    The arguments of `eval.py`; their help texts are the documentation.

    Raises:
        ValueError: If a corpus, pair or condition is unknown, if there is nothing to score, or a number is impossible.
    """

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a model; the embedded one by default."}
    )
    data_dir: str = field(default="data", metadata={"help": "Folder that holds the corpora."})
    corpora: list[str] = field(
        default_factory=list, metadata={"help": f"Corpora to score, among {', '.join(CORPORA)}."}
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "Simulated pairs to score, AUDIO+TEXT: voices of one corpus, words of another."},
    )
    timelines: list[str] = field(
        default_factory=list,
        metadata={"help": "Corpora, or pairs AUDIO+TEXT, whose clips are joined to one recording to be followed."},
    )
    conditions: list[str] = field(
        default_factory=lambda: list(CONDITIONS),
        metadata={"help": "What is done to the rows, where it applies; everything by default."},
    )
    output_dir: str = field(
        default="results", metadata={"help": "Folder for results.json, report.md and the plots; made if need be."}
    )
    cards: list[str] = field(
        default_factory=list,
        metadata={"help": "Markdown files whose section of results is rewritten, such as model_card.md."},
    )
    limit: int | None = field(
        default=None, metadata={"help": "Score this many rows of each corpus, drawn at random; all by default."}
    )
    batch_size: int = field(default=16, metadata={"help": "Items that the model sees at once."})
    seed: int = field(default=0, metadata={"help": "Of noise, shuffling, pairing, drawing and the bootstrap."})

    def __post_init__(self):
        if not self.corpora and not self.pairs and not self.timelines:
            raise ValueError("There is nothing to score; name --corpora, --pairs, --timelines, or several of them.")
        for pair in self.pairs:
            if pair.count("+") != 1:
                raise ValueError(f"pairs={self.pairs}: {pair!r} must be AUDIO+TEXT, two corpora such as ravdess+meld.")
        named = self.corpora + [name for pair in self.pairs + self.timelines for name in pair.split("+")]
        if unknown := [name for name in named if name not in CORPORA]:
            raise ValueError(f"Unknown corpora {unknown}; the known ones are {sorted(CORPORA)}.")
        if unknown := [name for name in self.conditions if name not in CONDITIONS]:
            raise ValueError(f"Unknown conditions {unknown}; the known ones are {list(CONDITIONS)}.")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit} must be at least 2 rows: an interval needs them. Or leave it out.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")
