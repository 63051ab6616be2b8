"""Command-line arguments of an evaluation."""

from dataclasses import dataclass, field
from pathlib import Path

from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.data.source_arguments import SOURCES_HELP, SourceArguments
from modeling_mmemo.data.sources import TABLES, source_name
from modeling_mmemo.evaluation.conditions import CONDITIONS


SPLITS = ("train", "dev", "test")


@dataclass
class EvaluationArguments(SourceArguments):
    """
    Arguments of `eval.py`, documented by their help texts.

    Raises:
        ValueError: If a source, pair or condition is unknown, if nothing is selected, or if a number is out of range.
    """

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a model; the embedded model by default."}
    )
    corpora: list[str] = field(default_factory=list, metadata={"help": f"Sources to evaluate on: {SOURCES_HELP}."})
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "Simulated pairs to evaluate on, AUDIO+TEXT: audio of one source, text of another."},
    )
    timelines: list[str] = field(
        default_factory=list,
        metadata={"help": "Sources, or pairs AUDIO+TEXT, whose clips are joined to one recording with a timeline."},
    )
    labels: list[str] = field(
        default_factory=list,
        metadata={"help": "Evaluate only rows with these labels, some of those of the model; all by default."},
    )
    split: str | None = field(
        default=None,
        metadata={"help": f"Part to evaluate on: {SPLITS}; by default test, or all rows of a source without one."},
    )
    dev_share: float = field(
        default=0.0,
        metadata={"help": "With split=dev, the dev_share of the training run, which set the same speakers aside."},
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
    cache_dir: str = field(
        default="runs/features", metadata={"help": "Folder in which the faces of videos are cached, as in training."}
    )
    limit: int | None = field(
        default=None, metadata={"help": "Evaluate this many random rows of each source; all by default."}
    )
    batch_size: int = field(default=16, metadata={"help": "Items per batch."})
    seed: int = field(default=0, metadata={"help": "Seed of noise, shuffling, pairing, sampling and the bootstrap."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.corpora and not self.pairs and not self.timelines:
            raise ValueError("Nothing to evaluate; pass --corpora, --pairs or --timelines.")
        for pair in self.pairs:
            if split_pair(pair)[1] is None:
                raise ValueError(f"pairs={self.pairs}: {pair!r} must be AUDIO+TEXT, two sources such as ravdess+meld.")
        if unknown := [source for source in self.sources() if not _may_be_source(source)]:
            raise ValueError(
                f"Unknown corpora {unknown}; choose among {sorted(CORPORA)}, or name a table ({', '.join(TABLES)}), a "
                "folder, or a dataset of the Hub (owner/name)."
            )
        self.check_columns(self.sources())
        self._check_values()

    def sources(self) -> list[str]:
        """Returns all sources, those of pairs included."""
        parts = [part for name in (*self.pairs, *self.timelines) for part in split_pair(name)]
        return [*self.corpora, *(part for part in parts if part is not None)]

    def name_of(self, source: str) -> str:
        """Returns the name of a source in the results: a short one, unless another source has the same."""
        name = source_name(source)
        same = {other for other in self.sources() if source_name(other) == name}
        return name if len(same) == 1 else source

    def _check_values(self) -> None:
        """Raises a `ValueError` if an option has an invalid value."""
        if unknown := [name for name in self.conditions if name not in CONDITIONS]:
            raise ValueError(f"Unknown conditions {unknown}; choose among {list(CONDITIONS)}.")
        if self.split is not None and self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} is unknown; choose one of {SPLITS}.")
        if not 0 <= self.dev_share < 1:
            raise ValueError(f"dev_share={self.dev_share} must be in [0, 1).")
        if self.dev_share > 0 and self.split not in ("dev", "train"):
            raise ValueError(f"dev_share={self.dev_share} needs split=dev; set it, or leave dev_share out.")
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit={self.limit} must be at least 2, which the intervals need; or leave it out.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")


def split_pair(name: str) -> tuple[str, str | None]:
    """Returns the two sources of a pair AUDIO+TEXT; the second is `None` if `name` is not a pair."""
    if name.count("+") != 1 or Path(name).exists():
        return name, None
    audio, _, text = name.partition("+")
    return audio, text


def _may_be_source(name: str) -> bool:
    """Whether a name is a corpus, an existing path, a table, or has the form of a Hub name."""
    return name in CORPORA or Path(name).exists() or Path(name).suffix in TABLES or "/" in name
