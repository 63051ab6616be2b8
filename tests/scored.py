"""Writes output folders of archives, in the layout of `mmemo predict --output FOLDER`, from a few values a row."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


LABELS = ("angry", "sad")
SUFFIXES = {"parquet": "parquet", "json": "jsonl", "csv": "csv"}
NUMBER, TEXT, TEXTS = pa.float64(), pa.string(), pa.list_(pa.string())


def schema_of(labels, columns):
    scores = pa.struct([(label, NUMBER) for label in labels])
    stretch = [("start", NUMBER), ("end", NUMBER)]
    span = [*stretch, ("label", TEXT), ("score", NUMBER)]
    shapes = pa.list_(pa.struct([("name", TEXT), ("score", NUMBER)]))
    entry = [*span, ("scores", scores), ("words", TEXTS), ("face_presence", NUMBER), ("blendshapes", shapes)]
    return pa.schema(
        [
            *[("id", TEXT), ("path", TEXT), ("label", TEXT), ("score", NUMBER), ("scores", scores)],
            *[("label_set", TEXTS), ("modality_weights", pa.struct([("audio", NUMBER), ("text", NUMBER)]))],
            *[("duration", NUMBER), ("timeline", pa.list_(pa.struct(entry))), ("spans", pa.list_(pa.struct(span)))],
            *[
                ("speech", pa.list_(pa.struct(stretch))),
                ("warnings", TEXTS),
                ("error", TEXT),
                ("attempts", pa.int32()),
            ],
            *columns.items(),
        ]
    )


def row(name, label=None, score=0.5, duration=36.0, spans=None, **values):
    """A predicted row with a label, else a failed one; spans are `(start, end, label)`."""
    found = {"id": name, "path": f"/data/{name}", "attempts": 1, "label": label}
    if label is not None:
        silence = label == "silence"
        found |= {"score": None if silence else score, "duration": duration}
        found["scores"] = None if silence else {"angry": score, "sad": 1 - score}
    if spans is not None:
        found["spans"] = [dict(zip(("start", "end", "label"), span), score=0.5) for span in spans]
        scores = {"scores": {"angry": 0.5, "sad": 0.5}, "words": ["so,", '"it"'], "face_presence": None}
        found["timeline"] = [{**span, **scores, "blendshapes": None} for span in found["spans"]]
    return found | values


def write_archive(folder, rows, columns=None, kind="parquet", rows_per_part=3, **manifest):
    """Writes rows to parts of a few rows; `columns` are the Arrow types of the user's own columns."""
    columns = columns or {}
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "fingerprint": "0123456789abcdef" * 4,
        "model": "acme/calls",
        "revision": None,
        "format": kind,
        "labels": LABELS,
        "columns": {name: str(kind) for name, kind in columns.items()},
        "created": "2026-01-31T22:00:00+00:00",
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    schema = schema_of(LABELS, columns)
    for number in range(0, len(rows), rows_per_part):
        part = folder / f"part-{number:06d}-0a1b.{SUFFIXES[kind]}"
        table = pa.Table.from_pylist(
            [dict.fromkeys(schema.names) | row for row in rows[number:][:rows_per_part]], schema
        )
        if kind == "parquet":
            pq.write_table(table, part, compression="zstd")
        elif kind == "json":
            part.write_text("".join(f"{as_json(row)}\n" for row in table.to_pylist()), encoding="utf-8")
        else:
            write_csv(part, schema.names, table.to_pylist())
    return folder


def as_json(value):
    return json.dumps(value, ensure_ascii=False, default=lambda date: date.isoformat())


def write_csv(path: Path, names, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow(as_text(row[name]) for name in names)


def as_text(value):
    if value is None or isinstance(value, str):
        return value or ""
    return as_json(value) if isinstance(value, list | dict) else str(value)
