"""Reading the corpora of the default model into one schema.

Every corpus lies below `data_dir`, as a `datasets` audiofolder (`metadata.csv` beside the clips) or as one CSV of
sentences. All rows come out with the columns of `FEATURES`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from datasets import Audio, Dataset, Features, List, Value
from transformers.utils import logging

from modeling_mmemo.data.labels import shared_label


logger = logging.get_logger(__name__)

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


@dataclass(frozen=True)
class Corpus:
    """How one corpus is laid out.

    Args:
        path (`str`): Its table, below `data_dir`.
        label_column (`str`): The column that holds the label.
        modality (`str`): `"audio"` where only the voice carries the emotion (the words are fixed sentences, said in
            every emotion), `"text"` where there are only words.
        split_column (`str`): The column that says `train`, `dev` or `test`; empty values are `train`.
        dev_speakers (`tuple[str, ...]`): Training speakers that are set aside for development.
        licence (`str`): Licence of the data.
    """

    path: str
    modality: str
    licence: str
    label_column: str = "label"
    split_column: str = "split"
    dev_speakers: tuple[str, ...] = ()


CORPORA = {
    "ravdess": Corpus(
        "ravdess/metadata.csv",
        "audio",
        "CC BY-NC-SA 4.0",
        split_column="emobox_fold_1",
        dev_speakers=("02", "03", "14", "15"),
    ),
    "nemo": Corpus("nemo/metadata.csv", "audio", "CC BY-NC-SA 4.0", dev_speakers=("MP0",)),
    "tess": Corpus("tess/metadata.csv", "audio", "CC BY-NC-ND 4.0"),
    "emodb": Corpus("emodb/metadata.csv", "audio", "CC0"),
    "meld": Corpus("text/meld_text.csv", "text", "GPL-3.0"),
    "goemotions": Corpus("text/goemotions.csv", "text", "CC BY 4.0", label_column="ekman"),
}


def read_corpus(name: str, data_dir: str | Path) -> Dataset:
    """Reads a corpus of `CORPORA`; rows whose label has no shared counterpart are left out, and their number logged.

    Raises:
        ValueError: If the corpus is unknown, or its table is not below `data_dir`.
    """
    if name not in CORPORA:
        raise ValueError(f"Unknown corpus {name!r}; the known ones are {sorted(CORPORA)}.")
    corpus = CORPORA[name]
    table = Path(data_dir) / corpus.path
    if not table.is_file():
        raise ValueError(f"{table} does not exist; put {name} there, or name its parent folder with --data_dir.")
    with table.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    rows = [_row(name, corpus, table.parent, record) for record in records]
    kept = [row for row in rows if row["label"] is not None]
    if len(kept) < len(rows):
        logger.warning(f"{name}: left out {len(rows) - len(kept)} of {len(rows)} rows without a single shared label.")
    # Encoding an Audio column needs torchcodec even with decode=False; casting its stored form to it does not.
    stored = Features({**FEATURES, "audio": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_list(kept, features=stored).cast_column("audio", FEATURES["audio"])


def _row(name: str, corpus: Corpus, folder: Path, record: dict[str, str]) -> dict:
    split = record[corpus.split_column] or "train"
    if split == "train" and record["speaker"] in corpus.dev_speakers:
        split = "dev"
    is_audio = corpus.modality == "audio"
    return {
        "audio": {"path": str(folder / record["file_name"]), "bytes": None} if is_audio else None,
        "text": record["text"],
        "word_times": None,
        "label": shared_label(record[corpus.label_column]),
        "speaker": f"{name}-{record['speaker']}" if record["speaker"] else None,
        "corpus": name,
        "split": split,
    }
