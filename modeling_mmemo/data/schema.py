"""The schema of rows from every source."""

from datasets import Audio, Dataset, Features, List, Value


FEATURES = Features(
    {
        "audio": Audio(decode=False),
        "text": Value("string"),
        "word_times": List({"word": Value("string"), "start": Value("float32"), "end": Value("float32")}),
        "label": Value("string"),
        "speaker": Value("string"),
        "corpus": Value("string"),
        "split": Value("string"),
        "dialogue": Value("string"),
        "context": List({"speaker": Value("string"), "text": Value("string")}),
        "said_by": Value("string"),
        "language": Value("string"),
    }
)
"""
Columns of every row: `audio` (`{"bytes", "path"}`, undecoded) or `None`, `text` or `None`, `word_times` (the words of
`text` with their start and end in seconds) or `None`, `label`, `speaker` or `None`, `corpus`, and `split` (`"train"`,
`"dev"` or `"test"`). With dialogue context: `dialogue`, its name within the split; `context`, the turns before the
text, oldest first; `said_by`, the speaker of the text, by the name used in the turns; `None` otherwise. `language` is
the code that the source states, ISO 639-1 (`"zh"`) where the language has one, or `None`.
"""

# Encoding an Audio column needs torchcodec even with decode=False; casting a plain struct to it does not.
STORED_FEATURES = Features({**FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})

_SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "development": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
}


def split_of(name: str) -> str:
    """
    Returns `"train"`, `"dev"` or `"test"` for a source's name of a split.

    Raises:
        ValueError: If the name is unknown.
    """
    if name.strip().lower() not in _SPLITS:
        raise ValueError(f"Unknown split {name!r}; a split must be one of {sorted(_SPLITS)}.")
    return _SPLITS[name.strip().lower()]


def language_of(code: str | None) -> str | None:
    """Returns a language code without case and surrounding whitespace; `None` if it is missing or empty."""
    return (code or "").strip().lower() or None


def comparable_text(text: str) -> str:
    """Returns a text without case and runs of whitespace; texts that differ in these only are the same."""
    return " ".join(text.lower().split())


def text_of(row: dict) -> dict:
    """Returns the text of a row, with its `context` and `speaker` if it has them."""
    known = {"text": row["text"], "context": row.get("context"), "speaker": row.get("said_by")}
    return {name: value for name, value in known.items() if value is not None}


def as_dataset(rows: list[dict]) -> Dataset:
    """Returns rows as a `datasets.Dataset` with the columns of `FEATURES`; missing columns are `None`."""
    rows = [{**dict.fromkeys(FEATURES), **row} for row in rows]
    return Dataset.from_list(rows, features=STORED_FEATURES).cast_column("audio", FEATURES["audio"])
