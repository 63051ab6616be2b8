"""
The known corpora: their folders, readers and held-out speakers.

Every corpus is a folder or table in `data_dir`, in the layout in which it is published (a folder of its name, see
`modeling_mmemo.data.layouts`) or as one table. All rows have the columns of `FEATURES`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from datasets import Dataset
from transformers.utils import logging

from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.data import layouts
from modeling_mmemo.data.dialogues import DialogueHistory
from modeling_mmemo.data.labels import single_label
from modeling_mmemo.data.schema import FILE_COLUMNS, as_dataset, language_of, split_of
from modeling_mmemo.data.unknown_labels import check_unknown_labels


logger = logging.get_logger(__name__)

# The GoEmotions paper's grouping of its emotions to those of Ekman.
# Source: Demszky et al. 2020, https://github.com/google-research/google-research/tree/master/goemotions
_EKMAN = {
    "angry": "annoyance disapproval",
    "fear": "nervousness",
    "happy": "admiration amusement approval caring desire excitement gratitude love optimism pride relief",
    "sad": "disappointment embarrassment grief remorse",
    "surprise": "confusion curiosity realization",
}


@dataclass(frozen=True)
class Layout:
    """
    One form of a corpus on disk.

    Args:
        path (`str`): The table or folder, relative to `data_dir`.
        read (`Callable[[Path], Iterator[dict]]`): The reader, one of `modeling_mmemo.data.layouts`.
        modality (`str`):
            The modality, of audio and text, that carries the emotion: `"audio"` if the texts are fixed sentences,
            acted in every emotion, `"text"` if there is only text, or `"both"`. Video always carries it.
    """

    path: str
    read: Callable[[Path], Iterator[dict]]
    modality: str


@dataclass(frozen=True)
class Corpus:
    """
    A known corpus.

    Args:
        licence (`str`): Licence of the data.
        layouts (`tuple[Layout, ...]`): The supported layouts; the first one that exists is read.
        labels (`tuple[str, ...]`): The labels of the corpus; rows without one of them are excluded by its protocol.
        folds (`tuple[tuple[str, ...], ...]`): The test speakers of each fold of the cross-validation.
        test_speakers (`tuple[str, ...]`): Speakers of the test split outside of cross-validation.
        dev_speakers (`tuple[str, ...]`): Training speakers that are set aside for development.
        label_map (`Mapping[str, str]`): The shared labels of label names that only this corpus has.
        secondary (`tuple[str, ...]`):
            Label names without a shared label that are ignored beside others: with trust, `joy|trust` is joy. A name
            that is one of the wanted labels is not ignored.
        languages (`Mapping[str, str]`):
            The ISO 639 codes of the languages that the corpus writes otherwise, the two-letter ones where they exist.
    """

    licence: str
    layouts: tuple[Layout, ...]
    labels: tuple[str, ...] = EMOTIONS
    folds: tuple[tuple[str, ...], ...] = ()
    test_speakers: tuple[str, ...] = ()
    dev_speakers: tuple[str, ...] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    secondary: tuple[str, ...] = ()
    languages: Mapping[str, str] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """The modality of the first layout; [`find_layout`] returns the layout that exists."""
        return self.layouts[0].modality


def _acted(name: str, read: Callable[[Path], Iterator[dict]]) -> tuple[Layout, ...]:
    """Returns the layouts of a corpus of fixed sentences: an audiofolder, or as it is published."""
    return Layout(f"{name}/metadata.csv", layouts.read_metadata, "audio"), Layout(name, read, "audio")


def _one_out(speakers: str) -> tuple[tuple[str, ...], ...]:
    return tuple((speaker,) for speaker in speakers.split())


# Source: EmoBox (Ma et al. 2024), https://github.com/emo-box/EmoBox
_RAVDESS_FOLDS = (
    ("01", "11", "20", "21"),
    ("04", "10", "12", "14"),
    ("08", "09", "19", "23"),
    ("03", "05", "07", "24"),
    ("02", "15", "16", "18"),
    ("06", "13", "17", "22"),
)

# Our own folds, which share no speaker.
_CREMA_D_FOLDS = tuple(tuple(map(str, range(first, 1092, 5))) for first in range(1001, 1006))
_CH_SIMS_FOLDS = tuple(tuple(f"video_{number:04}" for number in range(first, 61, 5)) for first in range(1, 6))

SENTIMENTS = ("negative", "neutral", "positive")

# BRIGHTER has ISO 639-3 codes and some of its own; pcm, arq, ary and vmw have no ISO 639-1 code.
_BRIGHTER_LANGUAGES = {
    "afr": "af",
    "amh": "am",
    "chn": "zh",
    "deu": "de",
    "eng": "en",
    "esp": "es",
    "hau": "ha",
    "hin": "hi",
    "ibo": "ig",
    "ind": "id",
    "jav": "jv",
    "kin": "rw",
    "mar": "mr",
    "orm": "om",
    "ptbr": "pt",
    "ptmz": "pt",
    "ron": "ro",
    "rus": "ru",
    "som": "so",
    "sun": "su",
    "swa": "sw",
    "swe": "sv",
    "tat": "tt",
    "tir": "ti",
    "ukr": "uk",
    "xho": "xh",
    "yor": "yo",
    "zul": "zu",
}
# XED has the codes of OPUS, in which br is Brazilian Portuguese, and tw Chinese of Taiwan.
_XED_LANGUAGES = {"br": "pt", "cn": "zh", "tw": "zh"}
# The emotions of Plutchik that are not among the shared labels.
_XED_SECONDARY = ("anticipation", "trust")

CORPORA = {
    "ravdess": Corpus(
        "CC BY-NC-SA 4.0",
        _acted("ravdess", layouts.read_ravdess),
        folds=_RAVDESS_FOLDS,
        test_speakers=_RAVDESS_FOLDS[0],
        dev_speakers=("02", "03", "14", "15"),
    ),
    "crema-d": Corpus(
        "ODbL 1.0",
        _acted("crema-d", layouts.read_crema_d),
        folds=_CREMA_D_FOLDS,
        test_speakers=_CREMA_D_FOLDS[0],
        dev_speakers=_CREMA_D_FOLDS[1][::2],
    ),
    "tess": Corpus("CC BY-NC-ND 4.0", _acted("tess", layouts.read_tess)),
    "savee": Corpus("research only", _acted("savee", layouts.read_savee), folds=_one_out("DC JE JK KL")),
    "emodb": Corpus("CC0", _acted("emodb", layouts.read_emodb), folds=_one_out("03 08 09 10 11 12 13 14 15 16")),
    "nemo": Corpus(
        "CC BY-NC-SA 4.0",
        _acted("nemo", layouts.read_nemo),
        folds=_one_out("EB0 IC0 KD0 KS0 MK0 MP0 SM0 TP0 WR0"),
        dev_speakers=("MP0",),
    ),
    "iemocap": Corpus(
        "research only",
        (Layout("iemocap", layouts.read_iemocap, "both"),),
        folds=tuple((f"Ses0{session}F", f"Ses0{session}M") for session in range(1, 6)),
        test_speakers=("Ses05F", "Ses05M"),
        dev_speakers=("Ses04F", "Ses04M"),
    ),
    "meld": Corpus(
        "GPL-3.0",
        (
            Layout("text/meld_text.csv", layouts.read_metadata, "text"),
            Layout("meld", layouts.read_meld, "both"),
        ),
    ),
    "mosei": Corpus("research only", (Layout("mosei", layouts.read_mosei, "both"),)),
    "mosei-sentiment": Corpus(
        "research only", (Layout("mosei/label.csv", layouts.read_mmsa, "both"),), labels=SENTIMENTS
    ),
    "mosi": Corpus("research only", (Layout("mosi/label.csv", layouts.read_mmsa, "both"),), labels=SENTIMENTS),
    # The official splits may share videos; the folds do not.
    "ch-sims": Corpus(
        "research only",
        (Layout("ch-sims/label.csv", layouts.read_mmsa, "both"),),
        labels=SENTIMENTS,
        folds=_CH_SIMS_FOLDS,
    ),
    "goemotions": Corpus(
        "CC BY 4.0",
        (
            Layout("text/goemotions.csv", layouts.read_metadata, "text"),
            Layout("goemotions", layouts.read_goemotions, "text"),
        ),
        label_map={name: label for label, names in _EKMAN.items() for name in names.split()},
    ),
    # The test splits of IESC and TurEV are of other speakers than the training rows.
    "iesc": Corpus(
        "CC BY-NC-SA 4.0",
        (Layout("iesc/metadata.csv", layouts.read_metadata, "audio"),),
        dev_speakers=(
            "iesc_26febca2",
            "iesc_38ec51a1",
            "iesc_42923923",
            "iesc_9dea2065",
            "iesc_a871aa64",
            "iesc_c7b43119",
            "iesc_d897ac28",
            "iesc_d8fc5788",
        ),
    ),
    "turev": Corpus(
        "CC BY-NC-ND 4.0",
        (Layout("turev/metadata.csv", layouts.read_metadata, "audio"),),
        dev_speakers=("turev_1358",),
    ),
    "brighter": Corpus(
        "CC BY 4.0",
        (Layout("text/brighter.csv", layouts.read_metadata, "text"),),
        label_map={"none": "neutral"},
        languages=_BRIGHTER_LANGUAGES,
    ),
    "xed": Corpus(
        "CC BY 4.0",
        (Layout("text/xed.csv", layouts.read_xed, "text"),),
        secondary=_XED_SECONDARY,
        languages=_XED_LANGUAGES,
    ),
    "xed-projected": Corpus(
        "CC BY 4.0",
        (Layout("text/xed.csv", layouts.read_xed_projected, "text"),),
        secondary=_XED_SECONDARY,
        languages=_XED_LANGUAGES,
    ),
    # The development and test splits; depress, worried, relaxed, grateful and the "-other" have no shared label.
    "cped": Corpus(
        "Apache-2.0; lines of TV series: measure only, publish no weights trained on it",
        (Layout("text/cped_valid_test.csv", layouts.read_metadata, "text"),),
        label_map={"astonished": "surprise"},
    ),
}


def find_layout(name: str, data_dir: str | Path) -> Layout:
    """
    Returns the first layout of a corpus that exists in `data_dir`.

    Raises:
        ValueError: If the corpus is unknown, or none of its layouts is in `data_dir`.
    """
    if name not in CORPORA:
        raise ValueError(f"Unknown corpus {name!r}; the known ones are {sorted(CORPORA)}.")
    for layout in CORPORA[name].layouts:
        if (Path(data_dir) / layout.path).exists():
            return layout
    paths = " nor ".join(layout.path for layout in CORPORA[name].layouts)
    raise ValueError(f"{data_dir} has no {paths}; put {name} there, or set --data_dir to its parent folder.")


def corpus_rows(
    name: str,
    data_dir: str | Path,
    labels: Sequence[str] = EMOTIONS,
    fold: int | None = None,
    label_map: Mapping[str, str] | None = None,
    context_turns: int = 0,
    languages: Sequence[str] = (),
) -> Iterator[dict]:
    """
    Yields the rows of a corpus, including those without a known label; arguments as in [`read_corpus`].

    Raises:
        ValueError: If the corpus or the fold is unknown, the corpus is not in `data_dir`, or has none of `languages`.
    """
    yield from (row for row, _ in _named_rows(name, data_dir, labels, fold, label_map, context_turns, languages))


def _named_rows(
    name: str,
    data_dir: str | Path,
    labels: Sequence[str],
    fold: int | None,
    label_map: Mapping[str, str] | None,
    context_turns: int,
    languages: Sequence[str],
) -> Iterator[tuple[dict, str]]:
    """Yields the rows of [`corpus_rows`], each with its label name in the corpus."""
    records, corpus = _records(name, data_dir, languages), CORPORA[name]
    if fold is not None and not 1 <= fold <= len(corpus.folds):
        with_folds = {known: len(other.folds) for known, other in CORPORA.items() if other.folds}
        raise ValueError(f"{name} has no fold {fold}; folds are counted from 1, and their numbers are {with_folds}.")
    names = _label_map(corpus, labels, label_map)
    history = DialogueHistory(context_turns)
    for record in records:
        speaker = record["speaker"]
        row = {
            **record,
            **{name: record[name] and {"path": record[name], "bytes": None} for name in FILE_COLUMNS},
            "label": single_label(_primary(record["label"], corpus, labels, names), labels, names),
            "speaker": None if speaker is None else f"{name}-{speaker}",
            "corpus": name,
            "split": _split(corpus, record, fold),
            **history.add(record, speaker),
        }
        yield row, record["label"]


def _records(name: str, data_dir: str | Path, languages: Sequence[str]) -> Iterator[dict]:
    """Yields the records of a corpus in these languages (all if empty) or of unknown language, with ISO 639 codes."""
    layout = find_layout(name, data_dir)
    return _with_languages(name, layout.read(Path(data_dir) / layout.path), languages)


def _with_languages(name: str, records: Iterator[dict], languages: Sequence[str]) -> Iterator[dict]:
    codes, wanted, found = CORPORA[name].languages, [*map(language_of, languages)], set()
    for record in records:
        language = language_of(record["language"])
        language = codes.get(language, language) if language else None
        found.add(language)
        if not wanted or language is None or language in wanted:
            yield {**record, "language": language}
    check_languages(name, wanted, found)


def _primary(raw: str, corpus: Corpus, labels: Sequence[str], label_map: Mapping[str, str]) -> str:
    """Returns a cell of label names without the secondary ones of the corpus, unless it has no other."""
    wanted = {name.strip().lower() for name in (*labels, *label_map)}
    ignored = set(corpus.secondary) - wanted
    names = raw.split("|")
    return "|".join(name for name in names if name.strip().lower() not in ignored) or raw


def _label_map(corpus: Corpus, labels: Sequence[str], label_map: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the replacements of label names; a finer label is not grouped if it is one of `labels`."""
    wanted = {label.lower() for label in labels}
    grouped = {theirs: ours for theirs, ours in corpus.label_map.items() if theirs not in wanted}
    return {**grouped, **(label_map or {})}


def check_corpus_labels(
    name: str,
    counts: Mapping[str, int],
    labels: Sequence[str],
    label_map: Mapping[str, str] | None = None,
    allow: bool = False,
) -> None:
    """
    Checks the labels of a corpus, see [`check_unknown_labels`].

    Label names that have none of the corpus's labels, or several, are excluded by its protocol.
    """
    corpus = CORPORA[name]
    names, own = _label_map(corpus, labels, label_map), _label_map(corpus, corpus.labels)
    primary: Counter[str] = Counter()
    for raw, count in counts.items():
        primary[_primary(raw, corpus, labels, names)] += count
    excluded = [
        raw for raw in primary if single_label(_primary(raw, corpus, corpus.labels, own), corpus.labels, own) is None
    ]
    check_unknown_labels(name, primary, labels, names, excluded, allow)


def corpus_label_counts(
    name: str, data_dir: str | Path, limit: int | None = None, languages: Sequence[str] = ()
) -> Counter[str]:
    """Returns the number of rows of a corpus by its own label names, of its first `limit` rows in `languages`."""
    return Counter(record["label"] for record in islice(_records(name, data_dir, languages), limit))


def check_languages(source: str, wanted: Sequence[str | None], found: Collection[str | None]) -> None:
    """
    Checks that a source has the wanted languages, unless it states none; those that it lacks are logged.

    Args:
        source (`str`): Name of the source, for messages.
        wanted (`Sequence[str]`): The codes of the languages to keep.
        found (`Collection[str | None]`): The languages of the rows, `None` for rows of unknown language.

    Raises:
        ValueError: If the source states languages, but none of the wanted ones.
    """
    stated = sorted(language for language in found if language is not None)
    missing = [language for language in wanted if language not in stated]
    if not stated or not missing:
        return
    message = f"{source} has no rows in the languages {missing}; it has {stated}."
    if len(missing) == len(wanted):
        raise ValueError(f"{message} Choose some of these (--languages), or leave the source out.")
    logger.warning(message)


def read_corpus(
    name: str,
    data_dir: str | Path,
    labels: Sequence[str] = EMOTIONS,
    fold: int | None = None,
    label_map: Mapping[str, str] | None = None,
    context_turns: int = 0,
    allow_unknown_labels: bool = False,
    languages: Sequence[str] = (),
) -> Dataset:
    """
    Reads a corpus of `CORPORA`; rows with none or several of `labels` are left out, and counted by label in the log.

    Args:
        name (`str`): One of `CORPORA`.
        data_dir (`str` or `Path`): The folder that holds the corpora.
        labels (`Sequence[str]`, *optional*): The labels to keep.
        fold (`int`, *optional*):
            Fold of the cross-validation, counted from 1: its speakers are the test split, all others are for training.
            By default rows are in their official splits, or else split by `test_speakers` and `dev_speakers`.
        label_map (`Mapping[str, str]`, *optional*):
            Labels for label names of the corpus, in addition to the usual ones: `{"excited": "happy"}`.
        context_turns (`int`, *optional*, defaults to 0): Number of turns of context, in corpora of dialogues.
        allow_unknown_labels (`bool`, *optional*, defaults to `False`):
            Whether more than 5 % of the rows may have a label of the corpus that is not one of `labels`. Rows without
            one, such as boredom, are excluded by the protocol of the corpus, and do not count.
        languages (`Sequence[str]`, *optional*):
            ISO 639 codes of the languages to keep, two-letter ones where they exist; all by default. Rows of unknown
            language are kept.

    Returns:
        `datasets.Dataset` with the columns of `FEATURES`.

    Raises:
        ValueError: If the corpus or the fold is unknown, the corpus is not in `data_dir`, or has no row of these
        labels or languages, or too many rows of other labels.
    """
    named = list(_named_rows(name, data_dir, labels, fold, label_map, context_turns, languages))
    rows, counts = [row for row, _ in named], Counter(raw for _, raw in named)
    kept = [row for row in rows if row["label"] is not None]
    if not kept:
        layout = find_layout(name, data_dir)
        raise ValueError(
            f"None of the {len(rows)} rows in {Path(data_dir) / layout.path} has one of the labels {list(labels)}; "
            f"modeling_mmemo.data.layouts.{layout.read.__name__} describes the layout."
        )
    check_corpus_labels(name, counts, labels, label_map, allow_unknown_labels)
    return as_dataset(kept)


def _split(corpus: Corpus, record: dict, fold: int | None) -> str:
    if fold is not None:
        return "test" if record["speaker"] in corpus.folds[fold - 1] else "train"
    if record["split"] is not None:
        split = split_of(record["split"])
    else:
        split = "test" if record["speaker"] in corpus.test_speakers else "train"
    return "dev" if split == "train" and record["speaker"] in corpus.dev_speakers else split
