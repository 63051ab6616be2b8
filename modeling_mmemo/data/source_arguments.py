"""The options that name labelled data, the same ones for training and evaluation."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.data.sources import Rows, label_counts, read_source


SOURCES_HELP = "known corpora, tables (CSV, TSV, JSON Lines, Parquet), audiofolders or Hub datasets"


@dataclass
class SourceArguments:
    """
    Options that name sources of labelled rows, and how to read them.

    Raises:
        ValueError: If a value is invalid, or two options contradict each other.
    """

    data_dir: str = field(default="data", metadata={"help": "Folder that holds the known corpora."})
    corpora: list[str] = field(default_factory=list, metadata={"help": f"Sources: {SOURCES_HELP}."})
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Column names of your tables, as in label=emotion video=film."}
    )
    encoding: str | None = field(
        default=None,
        metadata={"help": "Character encoding of your CSV and TSV tables, such as gbk; UTF-8 by default."},
    )
    label_map: list[str] = field(
        default_factory=list, metadata={"help": "Label names of your tables, as in excited=happy."}
    )
    labels: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The labels to predict, in the order of the scores; by default those of the mmemo model that the "
            f"run starts from, or {' '.join(EMOTIONS)}."
        },
    )
    allow_unknown_labels: bool = field(
        default=False,
        metadata={"help": "Leave rows with other labels out, even if they are many; an error by default."},
    )

    languages: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Keep only rows in these languages, as in zh en, and those of unknown language; all by default."
        },
    )

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels={self.labels} must not name a label twice.")
        check_pairs("columns", self.columns, "ours=theirs")
        check_pairs("label_map", self.label_map, "theirs=ours")

    def check_columns(self, sources: Iterable[str]) -> None:
        """Raises a `ValueError` if `columns` or `encoding` is set, but the columns of all sources are known."""
        sources = list(sources)
        for name in ("columns", "encoding"):
            if getattr(self, name) and all(source in CORPORA for source in sources):
                raise ValueError(
                    f"{name}={getattr(self, name)} contradicts corpora={sources}, whose columns are known. Leave "
                    f"{name} out."
                )

    def read(self, source: str, context_turns: int = 0, streaming: bool = False, fold: int | None = None) -> Rows:
        """Reads one source with these options; see [`read_source`]."""
        known = source in CORPORA
        return read_source(
            source,
            self.data_dir,
            columns={} if known else as_mapping(self.columns),
            labels=self.labels,
            label_map=as_mapping(self.label_map),
            streaming=streaming,
            fold=fold if known and CORPORA[source].folds else None,
            context_turns=context_turns,
            allow_unknown_labels=self.allow_unknown_labels,
            encoding=None if known else self.encoding,
            languages=self.languages,
        )

    def label_counts(self, source: str) -> dict[str, int]:
        """Returns the number of rows by label name of one source; see [`label_counts`]."""
        columns = {} if source in CORPORA else as_mapping(self.columns)
        return label_counts(source, self.data_dir, columns, self.encoding, self.languages)


def as_mapping(pairs: Iterable[str]) -> dict[str, str]:
    """Returns `{"a": "b"}` for `["a=b"]`."""
    return dict(pair.split("=") for pair in pairs)


def check_pairs(name: str, pairs: list[str], form: str) -> None:
    """Raises a `ValueError` unless every value of the option `name` has exactly one `=`."""
    if wrong := [pair for pair in pairs if pair.count("=") != 1]:
        raise ValueError(f"{name}={wrong} must be written as {form}.")
