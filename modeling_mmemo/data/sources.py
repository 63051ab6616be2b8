"""Reads rows of any source: a known corpus, a table, a folder of clips, a dataset of the Hub."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    Image,
    IterableDataset,
    List,
    Video,
    concatenate_datasets,
    load_dataset,
)

from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.data.corpora import (
    CORPORA,
    check_corpus_labels,
    check_languages,
    corpus_label_counts,
    corpus_rows,
    read_corpus,
)
from modeling_mmemo.data.dialogues import DialogueHistory
from modeling_mmemo.data.labels import single_label
from modeling_mmemo.data.layouts import read_csv
from modeling_mmemo.data.schema import (
    FEATURES,
    FILE_COLUMNS,
    STORED_FEATURES,
    has_pictures,
    language_of,
    split_of,
    with_file_features,
)
from modeling_mmemo.data.unknown_labels import check_unknown_labels, listed, remedy


TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
CLIPS = (".wav", ".flac", ".ogg", ".mp3")
# Columns of paths of audio or video files, for tables without the column `audio`.
_PATH_COLUMNS = ("file_name", "path", "file")
# Number of rows of a stream whose labels are checked at first.
CHECKED = 1000

Rows = Dataset | IterableDataset


def read_source(
    source: str,
    data_dir: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    labels: Sequence[str] = EMOTIONS,
    label_map: Mapping[str, str] | None = None,
    streaming: bool = False,
    fold: int | None = None,
    context_turns: int = 0,
    allow_unknown_labels: bool = False,
    encoding: str | None = None,
    languages: Sequence[str] = (),
) -> Rows:
    """
    Reads labelled rows of any source, with the columns of `FEATURES`.

    Rows with none or several of `labels` are left out, and counted by label in the log; more than 5 % of them raise an
    error. Of a stream the first 1000 rows are counted. Rows without a split are training rows.

    Args:
        source (`str`):
            The first that applies: the name of one of `CORPORA`; the path of a CSV, TSV, JSON Lines or Parquet table,
            or of a `datasets` audiofolder or videofolder (with `metadata.csv` or another of these tables, or one
            folder per label, optionally in one folder per split); a dataset of the Hub, as `owner/name` or
            `owner/name:config`.
        data_dir (`str` or `Path`): The folder that holds the corpora.
        columns (`Mapping[str, str]`, *optional*):
            The source's column for each of ours, if the names differ: `{"label": "emotion"}`. A table without `audio`
            may have `file_name`, `path` or `file` instead, in which the suffix of a path tells whether it is audio or
            video; an image is a video of one frame. Paths are relative to the table. A row with a video and without
            audio keeps `audio` empty: it has the sound of the video.
        labels (`Sequence[str]`, *optional*): The labels to keep.
        label_map (`Mapping[str, str]`, *optional*): Labels for label names of the source: `{"excited": "happy"}`.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to return an `IterableDataset`, which never holds the whole source.
        fold (`int`, *optional*): Fold of a corpus, see [`read_corpus`].
        context_turns (`int`, *optional*, defaults to 0):
            Number of turns of context, from the column `context`, `[{"speaker", "text"}, ...]` (JSON in a CSV), or
            from the rows before with the same `dialogue`.
        allow_unknown_labels (`bool`, *optional*, defaults to `False`):
            Whether more than 5 % of the rows may be left out because of their label; see [`read_corpus`] for corpora.
        encoding (`str`, *optional*): Character encoding of CSV and TSV tables, see [`read_csv`].
        languages (`Sequence[str]`, *optional*):
            Codes of the languages to keep, as in the column `language`, see [`read_corpus`] for corpora; all by
            default. Rows of unknown language are kept.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.

    Raises:
        ValueError: If there is no such source, column, split or fold, if no row has one of `labels` or `languages`,
        or if too many have another label.
    """
    if source in CORPORA:
        if columns:
            raise ValueError(
                f"columns={dict(columns)} contradicts {source!r}, whose columns are known; leave columns out."
            )
        if not streaming:
            return read_corpus(
                source, data_dir, labels, fold, label_map, context_turns, allow_unknown_labels, languages
            )
        counts = corpus_label_counts(source, data_dir, CHECKED, languages)
        check_corpus_labels(source, counts, labels, label_map, allow_unknown_labels)
        # As a tuple, because `from_generator` takes a list for shards.
        arguments = {"name": source, "data_dir": str(data_dir), "labels": tuple(labels), "fold": fold}
        arguments |= {"label_map": label_map, "context_turns": context_turns, "languages": tuple(languages)}
        stream = IterableDataset.from_generator(corpus_rows, features=STORED_FEATURES, gen_kwargs=arguments)
        return _keep_labelled(stream, source, labels, counts)
    if fold is not None:
        raise ValueError(f"fold={fold} needs a corpus with folds; {source!r} is not in {sorted(CORPORA)}.")
    tables = _tables(source, streaming, encoding, columns, languages)
    counts = _table_label_counts(tables)
    known = [name for name in counts if single_label(name, labels, label_map) is not None]
    if streaming or known:
        check_unknown_labels(source, counts, labels, label_map, allow=allow_unknown_labels)
    rows = concatenate_datasets([_in_schema(*table, labels, label_map or {}, context_turns) for table in tables])
    kept = _keep_labelled(rows, source, labels, counts)
    return kept if streaming else with_file_features(kept)


def label_counts(
    source: str,
    data_dir: str | Path,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    languages: Sequence[str] = (),
) -> Counter[str]:
    """Returns the number of rows of a source by its own label names; arguments as in [`read_source`]."""
    if source in CORPORA:
        return corpus_label_counts(source, data_dir, languages=languages)
    return _table_label_counts(_tables(source, False, encoding, columns, languages))


def source_name(source: str) -> str:
    """Returns a short name of a source: of a table or folder its own, without the path; any other as it is."""
    path = Path(source)
    if source in CORPORA or not path.exists():
        return source
    return path.resolve().name if path.is_dir() else path.stem


def _tables(
    source: str,
    streaming: bool,
    encoding: str | None,
    columns: Mapping[str, str] | None,
    languages: Sequence[str],
) -> list[tuple[Rows, "_TableFormat"]]:
    """Returns the tables of a source, with the rows in these languages (all if empty) or of unknown language."""
    tables = [_describe(*table, source, columns or {}) for table in _open(source, streaming, encoding)]
    if not languages:
        return tables
    wanted = [*map(language_of, languages)]
    kept = [
        (rows.filter(_is_in, fn_kwargs={"table_format": form, "languages": wanted}), form) for rows, form in tables
    ]
    # A stream is read to its end only if it has none of the rows.
    if not streaming or all(next(iter(rows), None) is None for rows, _ in kept):
        stating = [
            (rows.select_columns([form.columns["language"]]), form)
            for rows, form in tables
            if "language" in form.columns
        ]
        found = {_language(row, form) for rows, form in stating for row in rows}
        check_languages(source, wanted, found)
    return [(rows, form) for rows, form in kept if streaming or len(rows)]


def _is_in(record: dict, table_format: "_TableFormat", languages: Sequence[str | None]) -> bool:
    """Whether a row is in one of these languages, or its language is unknown."""
    language = _language(record, table_format)
    return language is None or language in languages


def _language(record: dict, table_format: "_TableFormat") -> str | None:
    """Returns the code of a row's language, or `None` if the table does not state it."""
    value = record.get(table_format.columns.get("language", ""))
    if table_format.language_names is not None and value is not None:
        # On the Hub -1 is a missing value.
        value = table_format.language_names[value] if value >= 0 else None
    return None if value is None else language_of(str(value))


def _table_label_counts(tables: Sequence[tuple[Rows, "_TableFormat"]]) -> Counter[str]:
    """Returns the number of rows by label name, of a stream those of its first rows."""
    counts: Counter[str] = Counter()
    for rows, table_format in tables:
        labelled = rows.select_columns([table_format.columns["label"]])
        if isinstance(rows, IterableDataset):
            labelled = labelled.take(CHECKED)
        counts.update(_raw_label(record, table_format) for record in labelled)
    return counts


def _keep_labelled(rows: Rows, source: str, labels: Sequence[str], counts: Mapping[str, int]) -> Rows:
    """Returns the rows that have a label, at least one; `counts` has the label names of the source, for the error."""
    kept = rows.filter(_has_label)
    if next(iter(kept), None) is None:
        raise ValueError(
            f"No row of {source} has one of the labels {list(labels)}; its labels are {listed(counts)}. "
            f"{remedy(counts, counts, labels)}."
        )
    return kept


def _has_label(row: dict) -> bool:
    return row["label"] is not None


def _open(source: str, streaming: bool, encoding: str | None) -> Iterator[tuple[Rows, Path | None, str]]:
    """Yields the tables of a source, each with the folder of its relative paths, and its split."""
    path = Path(source)
    if path.suffix in TABLES:
        if not path.is_file():
            raise ValueError(f"{source} does not exist; paths are relative to {Path.cwd()}.")
        yield _load(path, streaming, encoding), path.parent, "train"
        return
    # An audiofolder or videofolder may have a table in the folder of each split.
    tables = [table for table in sorted(path.rglob("metadata.*")) if table.suffix in TABLES] if path.is_dir() else []
    for table in tables:
        split = "train" if table.parent == path else split_of(table.parent.name)
        yield _load(table, streaming, encoding), table.parent, split
    if tables:
        return
    if path.is_dir() and any(_labelled_clips(path)):
        yield _rows_of(_labelled_clips, streaming, path=path), path, "train"
        return
    repository, _, config = source.partition(":")
    try:
        splits = load_dataset(repository, config or None, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"{source!r} is neither one of the corpora {sorted(CORPORA)}, nor an existing folder or table "
            f"({', '.join(TABLES)}), nor an accessible dataset of the Hub: {error}"
        ) from error
    for split, rows in splits.items():
        yield rows, None, split_of(split)


def _load(path: Path, streaming: bool, encoding: str | None) -> Rows:
    if path.suffix in (".csv", ".tsv"):
        return _rows_of(read_csv, streaming, path=path, encoding=encoding)
    builder = {".jsonl": "json", ".parquet": "parquet"}[path.suffix]
    return load_dataset(builder, data_files=str(path), split="train", streaming=streaming)


def _rows_of(read: Callable[..., Iterator[dict]], streaming: bool, **arguments: Any) -> Rows:
    if streaming:
        return IterableDataset.from_generator(read, gen_kwargs=arguments)
    rows = list(read(**arguments))
    if not rows:
        raise ValueError(f"{arguments['path']} has no rows; it needs a header and at least one row.")
    return Dataset.from_list(rows)


def _labelled_clips(path: Path) -> Iterator[dict[str, str]]:
    """
    Yields the clips of `LABEL/clip.wav` or `SPLIT/LABEL/clip.wav`, and the videos.

    An audio and a video file that differ only in their suffixes are one clip.
    """
    files = [file.relative_to(path) for file in sorted(path.rglob("*.*"))]
    videos = {file.with_suffix(""): file for file in files if has_pictures(file)}
    clips = [file for file in files if file.suffix.lower() in CLIPS]
    paired = {file.with_suffix("") for file in clips}
    for clip in sorted([*clips, *(video for stem, video in videos.items() if stem not in paired)]):
        *split, label, _ = ("", *clip.parts)
        if label:
            video = videos.get(clip.with_suffix(""))
            yield {
                "audio": None if clip == video else str(clip),
                "video": None if video is None else str(video),
                "label": label,
                "split": split[-1],
            }


@dataclass(frozen=True)
class _TableFormat:
    """
    The format of a table.

    Args:
        columns (`dict[str, str]`): The table's column for each of ours that it has.
        label_names, language_names (`tuple[str, ...]`, *optional*): The names of labels or languages that are numbers.
        folder (`Path`, *optional*): The folder of relative paths.
        has_mixed_paths (`bool`): Whether the column for `audio` may also have the paths of videos.
        corpus, split (`str`): Defaults for rows without a corpus or a split.
    """

    columns: dict[str, str]
    label_names: tuple[str, ...] | None
    language_names: tuple[str, ...] | None
    folder: Path | None
    has_mixed_paths: bool
    corpus: str
    split: str


def _describe(
    rows: Rows, folder: Path | None, split: str, source: str, columns: Mapping[str, str]
) -> tuple[Rows, _TableFormat]:
    """Returns the needed columns of a table, audio and video undecoded, and its format."""
    features = rows.features or {}
    theirs = _columns(list(features) or list(next(iter(rows), {})), source, columns)
    rows = rows.select_columns(sorted(set(theirs.values())))
    for name in {theirs[name] for name in FILE_COLUMNS if name in theirs}:
        if isinstance(features.get(name), Audio | Image | Video):
            rows = rows.cast_column(name, type(features[name])(decode=False))
    label = features.get(theirs["label"])
    label = label.feature if isinstance(label, List) else label
    names, language_names = (
        tuple(feature.names) if isinstance(feature, ClassLabel) else None
        for feature in (label, features.get(theirs.get("language")))
    )
    corpus = source if folder is None else Path(source).stem
    has_mixed_paths = "audio" not in columns and theirs.get("audio") in _PATH_COLUMNS
    return rows, _TableFormat(theirs, names, language_names, folder, has_mixed_paths, corpus, split)


def _columns(present: list[str], source: str, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the source's column for each of ours that it has."""
    unknown = sorted(set(columns) - set(FEATURES))
    if unknown:
        raise ValueError(f"columns names {unknown}, but the columns of a row are {list(FEATURES)}.")
    theirs = {ours: ours for ours in FEATURES if ours in present}
    for name in FILE_COLUMNS:
        # A folder of `datasets` may have several files in a row.
        if f"{name}_file_name" in present:
            theirs.setdefault(name, f"{name}_file_name")
    for name in _PATH_COLUMNS:
        if name in present and name not in columns.values():
            theirs.setdefault("audio", name)
    theirs |= columns
    missing = [column for column in theirs.values() if column not in present]
    if missing or "label" not in theirs:
        raise ValueError(
            f"{source} has no column {missing or ['label']}; it has {present}. Map its own with columns, as in "
            "label=emotion."
        )
    return theirs


def _in_schema(
    rows: Rows, table_format: _TableFormat, labels: Sequence[str], label_map: Mapping[str, str], context_turns: int
) -> Rows:
    """Returns the rows with the columns of `FEATURES`; `label` is `None` unless it is one of `labels`."""
    # The cache of `datasets` does not notice a newer version of this package.
    options = {} if isinstance(rows, IterableDataset) else {"load_from_cache_file": False}
    return rows.map(
        _row,
        with_indices=True,
        fn_kwargs={
            "table_format": table_format,
            "labels": labels,
            "label_map": label_map,
            "history": DialogueHistory(context_turns),
        },
        remove_columns=sorted(set(table_format.columns.values())),
        features=STORED_FEATURES,
        **options,
    )


def _row(
    record: dict,
    index: int,
    table_format: _TableFormat,
    labels: Sequence[str],
    label_map: Mapping[str, str],
    history: DialogueHistory,
) -> dict:
    if index == 0:
        # A stream may be read several times.
        history.reset()
    row: dict = dict.fromkeys(FEATURES)
    row |= {ours: None if record[theirs] == "" else record[theirs] for ours, theirs in table_format.columns.items()}
    for name in ("word_times", "context"):
        # JSON in a CSV.
        row[name] = json.loads(row[name]) if isinstance(row[name], str) else row[name]
    corpus = row["corpus"] or table_format.corpus
    files = {name: _stored(row[name], table_format.folder) for name in FILE_COLUMNS}
    if table_format.has_mixed_paths and files["audio"] is not None and has_pictures(files["audio"]["path"] or ""):
        files = {"audio": None, "video": files["video"] or files["audio"]}
    return row | {
        **history.add(row, row["said_by"] or row["speaker"]),
        **files,
        "label": single_label(_raw_label(record, table_format), labels, label_map),
        "speaker": None if row["speaker"] is None else f"{corpus}-{row['speaker']}",
        "corpus": corpus,
        "language": _language(record, table_format),
        "split": split_of(row["split"] or table_format.split),
    }


def _stored(file: str | dict | None, folder: Path | None) -> dict | None:
    if file is None:
        return None
    stored = {"bytes": None, "path": file} if isinstance(file, str) else file
    if folder is not None and stored["bytes"] is None:
        return {"bytes": None, "path": str(folder / stored["path"])}
    return stored


def _raw_label(record: dict, table_format: _TableFormat) -> str:
    """Returns the name of a row's label in the source; several names are joined by `|`."""
    value = record[table_format.columns["label"]]
    values = value if isinstance(value, list) else [value]
    if table_format.label_names is not None:
        # On the Hub -1 is a missing label.
        values = [table_format.label_names[value] for value in values if value is not None and value >= 0]
    return "|".join(str(value).strip() for value in values if value is not None)
