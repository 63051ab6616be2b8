"""The one schema in which every source of rows comes out."""

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
    }
)
"""
Columns of every row: `audio` (`{"bytes", "path"}`, undecoded) or `None`, `text` or `None`, `word_times` (the words of
`text` with their start and end in seconds) or `None`, `label`, `speaker` or `None`, `corpus`, and `split` (`"train"`,
`"dev"` or `"test"`).
"""

# Encoding an Audio column needs torchcodec even with decode=False; casting its stored form to it does not.
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
    """`"train"`, `"dev"` or `"test"` for the name that a source gives to a split.

    Raises:
        ValueError: If it is none of the usual names.
    """
    if name.strip().lower() not in _SPLITS:
        raise ValueError(f"Unknown split {name!r}; name the splits as one of {sorted(_SPLITS)}.")
    return _SPLITS[name.strip().lower()]


def as_dataset(rows: list[dict]) -> Dataset:
    """Puts rows that have the columns of `FEATURES` into a `datasets.Dataset`."""
    return Dataset.from_list(rows, features=STORED_FEATURES).cast_column("audio", FEATURES["audio"])
