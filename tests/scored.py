"""Writes output folders of archives, as `mmemo predict --output FOLDER` does, from a few values a row."""

import json

from mmemo.archives.archive_rows import FORMATS, archive_schema
from mmemo.archives.job_manifest import MANIFEST_FILE, JobManifest


LABELS = ("angry", "sad")
MODALITIES = ("audio", "text")


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
    """
    Writes rows to parts of a few rows; `columns` are the Arrow types of the user's own columns, `manifest` entries of
    the manifest that differ.
    """
    types = {name: str(column) for name, column in (columns or {}).items()}
    job = JobManifest(
        model="acme/calls",
        revision=None,
        model_hash="0" * 64,
        options={},
        format=kind,
        partition_by=(),
        labels=LABELS,
        modalities=MODALITIES,
        columns=types,
        versions={"mmemo": "1"},
        created="2026-01-31T22:00:00+00:00",
    )
    folder.mkdir(parents=True, exist_ok=True)
    content = {**json.loads(job.to_json()), "fingerprint": "0123456789abcdef" * 4, **manifest}
    (folder / MANIFEST_FILE).write_text(json.dumps(content), encoding="utf-8")
    schema = archive_schema(LABELS, MODALITIES, types)
    form = FORMATS[kind](schema)
    for number in range(0, len(rows), rows_per_part):
        encoded = [form.encode(dict.fromkeys(schema.names) | found) for found in rows[number : number + rows_per_part]]
        (folder / f"part-{number:05d}-0a1b2c3d{form.suffix}").write_bytes(form.join(encoded))
    return folder
