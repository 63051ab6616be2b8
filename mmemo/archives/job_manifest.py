"""
The manifest of an archive job: what its predictions depend on, so that one output never mixes those of two jobs.

Deliberate choices:
- A model is identified by the contents of its files, not only by its name: `main` of a repository can change from one
  run to the next, and a folder can differ between two machines.
- Sources are recorded and not compared: the same job may be run again with more of them.
"""

import hashlib
import importlib.metadata
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmemo.archives.tasks import ScoringOptions
from mmemo.runtime.graph import ANALYSIS_FILE, EMBEDDED_MODEL, find_exported, find_graph, local_folder
from mmemo.timeline.windows import LABEL_OPTIONS


# Hidden, so that pandas and datasets read the folder and take the rows for all of its content.
MANIFEST_FILE = ".manifest.json"
# Read by the predictor in addition to the graph, as far as the model has them.
MODEL_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
MAX_SOURCES = 100
# In a graph: the entry `location` of a tensor outside the file, and the length of the file name that follows it.
EXTERNAL_FILE = re.compile(rb"\n\x08location\x12([\x80-\xff]?[\x00-\x7f])", re.DOTALL)
# Compared, in this order, and named thus in messages.
COMPARED = {
    "model": "model",
    "revision": "revision",
    "model_hash": "hash of the model",
    "options": "",  # each option by its name
    "format": "format",
    "partition_by": "partition_by",
    "labels": "labels",
    "modalities": "modalities",
    "columns": "columns",
    "versions": "version of",
}


def model_hash(model: str | os.PathLike | None = None, revision: str | None = None) -> str:
    """
    Returns the SHA-256 of the files that determine a model's predictions: the graph with its external weights,
    configuration, processor, tokenizer and feature analysis.

    Args:
        model (`str` or `os.PathLike`, *optional*), revision (`str`, *optional*): See [`EmotionPredictor`].

    Returns:
        `str`: 64 hexadecimal digits; equal for copies of a model in different folders.

    Raises:
        FileNotFoundError: If the model is not exported, or weights are missing.
        OSError: If it cannot be downloaded.
    """
    folder = EMBEDDED_MODEL if model is None else local_folder(model, revision=revision)
    digest = hashlib.sha256()
    for path in sorted(_model_files(folder), key=lambda path: path.name):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    graph = find_graph(folder)
    found = [graph, *_external_files(graph), *(folder / name for name in MODEL_FILES if (folder / name).is_file())]
    analysis = find_exported(folder, ANALYSIS_FILE)
    return found if analysis is None else [*found, analysis]


def _external_files(graph: Path) -> Iterator[Path]:
    """Yields the files with the external weights of a graph, without loading it: it may have gigabytes."""
    names = set()
    with graph.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for found in EXTERNAL_FILE.finditer(content):
            # A varint: 7 bits a byte, the lowest first.
            length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(found[1]))
            names.add(content[found.end() : found.end() + length].decode())
    for name in sorted(names):
        path = graph.parent / name
        if not path.is_file():
            raise FileNotFoundError(f"{graph} needs the weights in {path}, which do not exist; copy them next to it.")
        yield path


@dataclass(frozen=True)
class JobManifest:
    """
    What the predictions of an archive job depend on.

    Args:
        model, revision (`str`, *optional*): The model as given; see [`EmotionPredictor`].
        model_hash (`str`): Its contents; see [`model_hash`].
        options (`dict`): The other [`ScoringOptions`].
        format (`str`): The format of the output: `"parquet"`, `"json"` or `"csv"`.
        partition_by (`tuple[str, ...]`): The columns by which the output is divided into folders.
        labels, modalities (`tuple[str, ...]`): Those of the model, in order.
        columns (`dict[str, str]`): The user's own columns and their Arrow types, such as `"int64"`.
        versions (`dict[str, str]`): Versions of the packages that predict.
        created (`str`): When the job was started first, in UTC: `"2026-01-31T22:00:00+00:00"`. Not compared.
        sources (`tuple[str, ...]`): The sources it was started with. Not compared.
    """

    model: str | None
    revision: str | None
    model_hash: str
    options: dict[str, Any]
    format: str
    partition_by: tuple[str, ...]
    labels: tuple[str, ...]
    modalities: tuple[str, ...]
    columns: dict[str, str]
    versions: dict[str, str]
    created: str = ""
    sources: tuple[str, ...] = ()

    @classmethod
    def create(
        cls,
        options: ScoringOptions,
        labels: Sequence[str],
        modalities: Sequence[str],
        columns: Mapping[str, str] | None = None,
        format: str = "parquet",
        partition_by: Sequence[str] = (),
        sources: Iterable[str] = (),
        srt: str | None = None,
    ) -> "JobManifest":
        """
        Returns the manifest of a new job; hashes the model.

        Args:
            options ([`ScoringOptions`]): How the job predicts.
            labels, modalities (`Sequence[str]`): See [`AnswerFormatter`].
            columns (`Mapping[str, str]`, *optional*), format, partition_by (*optional*): See [`JobManifest`].
            sources (`Iterable[str]`, *optional*): The sources; the first hundred are recorded.
            srt (`str`, *optional*): Folder of the subtitles, which belongs to the options.

        Raises:
            ImportError: If onnxruntime is not installed.
            OSError: See [`model_hash`].
        """
        settings = json.loads(json.dumps(asdict(options) | {"srt": srt}))
        if options.candidate_labels is None:
            for name in LABEL_OPTIONS:
                del settings[name]
        model, revision = settings.pop("model"), settings.pop("revision")
        return cls(
            None if model is None else str(model),
            revision,
            model_hash(model, revision),
            settings,
            format,
            tuple(partition_by),
            tuple(labels),
            tuple(modalities),
            dict(columns or {}),
            runtime_versions(),
            datetime.now(UTC).isoformat(timespec="seconds"),
            tuple(map(str, sources))[:MAX_SOURCES],
        )

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of all that is compared, as 64 hexadecimal digits."""
        compared = {name: getattr(self, name) for name in COMPARED}
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """Returns the content of the manifest's file."""
        return json.dumps({"fingerprint": self.fingerprint, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, content: str | bytes, place: str) -> "JobManifest":
        """
        Returns the manifest in a file.

        Args:
            content (`str` or `bytes`): The content of the file.
            place (`str`): Its path, for messages.

        Raises:
            ValueError: If it is not a manifest.
        """
        try:
            entries = json.loads(content)
            del entries["fingerprint"]
            lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
            return cls(**entries | lists)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{place} is not the manifest of an archive job of this version ({type(error).__name__}: {error}); "
                "choose another --output, or restore the file."
            ) from error

    def check_same_job(self, written: "JobManifest", place: str) -> None:
        """
        Compares this manifest with that of an output.

        Args:
            written ([`JobManifest`]): The manifest of the output.
            place (`str`): The output, for the message.

        Raises:
            ValueError: If they are of different jobs.
        """
        differences = [text for name in COMPARED for text in _differences(name, written, self)]
        if differences:
            raise ValueError(
                f"{place} contains the predictions of another job: {'; '.join(differences)}. Choose another --output, "
                "or run the job with the same settings."
            )


def runtime_versions() -> dict[str, str]:
    """Returns the versions of the packages whose predictions may differ from one version to the next."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ImportError("Predicting archives needs ONNX Runtime: pip install 'mmemo[archives]'.") from error
    return {"mmemo": importlib.metadata.version("mmemo"), "onnxruntime": onnxruntime.__version__}


def _differences(name: str, written: JobManifest, current: JobManifest) -> Iterator[str]:
    """Yields each difference of a field, with both values."""
    old, new = getattr(written, name), getattr(current, name)
    if name in ("options", "versions"):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                yield f"{COMPARED[name]} {key} was {old.get(key)!r} and is {new.get(key)!r}".lstrip()
    elif old != new:
        # The start of a hash tells it from another one.
        shown = [repr(value[:12] if name == "model_hash" else _plain(value)) for value in (old, new)]
        yield f"{COMPARED[name]} was {shown[0]} and is {shown[1]}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
