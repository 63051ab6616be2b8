"""The schema of rows from every source."""

from pathlib import PurePath

from datasets import Audio, Dataset, Features, List, Value, Video

from mmemo.audio.loading import VIDEO_SUFFIXES


FEATURES = Features(
    {
        "audio": Audio(decode=False),
        "text": Value("string"),
        "video": Video(decode=False),
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
Columns of every row: `audio` and `video` (`{"bytes", "path"}`, undecoded) or `None`, `text` or `None`, `word_times`
(the words of `text` with their start and end in seconds) or `None`, `label`, `speaker` or `None`, `corpus`, and
`split` (`"train"`, `"dev"` or `"test"`). A row with `video` and without `audio` has the sound of the video, if the
file has a sound track, which is not known before it is opened. With dialogue context: `dialogue`, its name within the
split; `context`, the turns before the text, oldest first; `said_by`, the speaker of the text, by the name used in the
turns; `None` otherwise. `language` is the code that the source states, ISO 639-1 (`"zh"`) where the language has one,
or `None`.
"""

FILE_COLUMNS = ("audio", "video")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Encoding an Audio column needs torchcodec even with decode=False; casting a plain struct to it does not.
STORED_FEATURES = Features(
    {**FEATURES, **{name: {"bytes": Value("binary"), "path": Value("string")} for name in FILE_COLUMNS}}
)

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


def is_video(path: str | PurePath) -> bool:
    """Returns whether a file name has the suffix of a video format."""
    return PurePath(path).suffix.lower() in VIDEO_SUFFIXES


def has_pictures(path: str | PurePath) -> bool:
    """Returns whether a file name has the suffix of a video or image format; an image is a video of one frame."""
    return is_video(path) or PurePath(path).suffix.lower() in IMAGE_SUFFIXES


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
    return with_file_features(Dataset.from_list(rows, features=STORED_FEATURES))


def with_file_features(rows: Dataset) -> Dataset:
    """Returns rows with the columns of `STORED_FEATURES` as rows with those of `FEATURES`."""
    for name in FILE_COLUMNS:
        rows = rows.cast_column(name, FEATURES[name])
    return rows
