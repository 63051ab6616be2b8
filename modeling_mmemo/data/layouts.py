"""
Readers of the folder layouts of corpora.

A reader takes the path in `CORPORA` and yields raw records: `audio` and `video` (paths of the clip, the same one if
the sound is that of the video), `text`, `word_times`, `label` (the name in the corpus, several joined by `|`),
`speaker`, `split` (official splits), `dialogue` (the same for all rows of a dialogue) and `language` (as the corpus
writes it); `None` if the corpus has none. Clips may be in deeper folders than shown. Audio files may be WAV, FLAC or
Ogg, and video files have the suffix of any video format.
"""

import codecs
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import chain
from pathlib import Path, PurePosixPath

from modeling_mmemo.data.clip_files import AUDIO_SUFFIXES, NO_FILES, find_files, named_files, warn_missing
from modeling_mmemo.data.labels import label_of
from modeling_mmemo.data.schema import comparable_text, is_video


RAVDESS_LABELS = dict(
    zip(
        ("01", "02", "03", "04", "05", "06", "07", "08"),
        ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    )
)
RAVDESS_TEXTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
CREMA_D_LABELS = {
    "ANG": "angry",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happy",
    "NEU": "neutral",
    "SAD": "sad",
}
CREMA_D_TEXTS = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
SAVEE_LABELS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}
EMODB_LABELS = {
    "W": "anger",
    "L": "boredom",
    "E": "disgust",
    "A": "fear",
    "F": "happiness",
    "T": "sadness",
    "N": "neutral",
}
EMODB_TEXTS = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
IEMOCAP_LABELS = {
    "ang": "angry",
    "dis": "disgust",
    "exc": "excited",
    "fea": "fear",
    "fru": "frustrated",
    "hap": "happy",
    "neu": "neutral",
    "oth": "other",
    "sad": "sad",
    "sur": "surprise",
    "xxx": "no agreement",
}

# A file of MELD's training videos that cannot be decoded.
# Source: https://github.com/declare-lab/MELD/issues/39
MELD_BROKEN = ("train", "125", "3")

# The MELD tables have cp1252 punctuation as control characters, or as raw bytes if a spreadsheet saved them:
# "surrogateescape" turns byte 0x92 into 0xDC92.
_CP1252 = {
    code: bytes([byte]).decode("cp1252", errors="ignore")
    for byte in range(0x80, 0x100)
    for code in ((byte, 0xDC00 + byte) if byte < 0xA0 else (0xDC00 + byte,))
}
# Text of Western Europe has hardly four letters with accents in a row; Chinese in GBK, or Russian in cp1251, has.
_OTHER_ENCODING = re.compile("[\udc80-\udcff]{4}")


def read_csv(path: Path, encoding: str | None = None) -> Iterator[dict[str, str]]:
    """
    Yields the rows of a CSV table, or a `.tsv` table, with a header; every cell is a string.

    Cells are separated by commas, or by semicolons if the header has no comma.

    Args:
        path (`Path`): The table.
        encoding (`str`, *optional*):
            Character encoding; by default UTF-16 with a byte order mark, or else UTF-8, which may contain single bytes
            of cp1252.

    Raises:
        ValueError: If the encoding is unknown or wrong, or a row has more cells than the header.
    """
    lines = _lines(path, encoding)
    header = next(lines, "")
    delimiter = "\t" if path.suffix == ".tsv" else ";" if ";" in header and "," not in header else ","
    table = csv.DictReader(chain([header], lines), delimiter=delimiter)
    for row in table:
        if None in row:
            raise ValueError(
                f"{path}, line {table.line_num}: the row has more cells than the header; put double quotes around a "
                f"cell that contains {delimiter!r}."
            )
        yield row


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    """Yields the lines of a table, each with its line break."""
    with path.open("rb") as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    guessed = "utf-16" if is_utf16 else "utf-8-sig"
    try:
        with path.open(
            newline="", encoding=encoding or guessed, errors=None if encoding else "surrogateescape"
        ) as file:
            for number, line in enumerate(file, start=1):
                if _OTHER_ENCODING.search(line):
                    raise ValueError(
                        f"{path}, line {number}, is not UTF-8. Name the encoding of the table (--encoding gbk for "
                        "simplified Chinese, cp1252 for Western Europe), or save it as UTF-8."
                    )
                yield line if encoding else line.translate(_CP1252)
    except LookupError as error:
        raise ValueError(
            f"encoding={encoding!r} is unknown; choose one such as utf-8, gbk, big5 or cp1252."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not in the encoding {encoding or guessed} ({error.reason} at byte {error.start}); name the "
            "encoding of the table, as in --encoding gbk, or save it as UTF-8."
        ) from error


def read_metadata(table: Path) -> Iterator[dict]:
    """
    Reads a table of texts or clips (`file_name,label,text,speaker,split`), such as `metadata.csv` of an audiofolder.

    `file_name` is an audio file, or a video with sound; `video_file_name` is the video of an audio file. Rows with the
    same `dialogue` are the turns of a dialogue, in order. `language` is the language of the row.
    """
    for row in read_csv(table):
        clip = table.parent / row["file_name"] if row.get("file_name") else None
        video = table.parent / row["video_file_name"] if row.get("video_file_name") else None
        yield _record(
            row["label"],
            audio=clip,
            video=video or (clip if clip and is_video(clip) else None),
            text=row.get("text"),
            speaker=row.get("speaker"),
            split=row.get("split"),
            dialogue=row.get("dialogue"),
            language=row.get("language"),
        )


def read_ravdess(folder: Path) -> Iterator[dict]:
    """
    Reads RAVDESS: `Actor_12/03-01-06-01-02-01-12.wav` and `Video_Speech_Actor_12/Actor_12/01-01-06-01-02-01-12.mp4`.

    The first number is the modality: 01 is picture and sound, 02 the same picture without sound, 03 the same sound.
    They are the files of one row; 02 is read only where 01 is missing. Songs (second number 02) are skipped.

    Source: https://zenodo.org/records/1188976
    """
    for files, (emotion, statement, actor) in named_files(
        folder, r"(\d\d)-\d\d-(\d\d)-\d\d-(\d\d)", prefix="0[123]-01-"
    ):
        video = files["video"]
        if video is not None and video == files["audio"] and video.name.startswith("02-"):
            files["audio"] = None
        yield _record(RAVDESS_LABELS[emotion], **files, text=RAVDESS_TEXTS[statement], speaker=actor)


def read_crema_d(folder: Path) -> Iterator[dict]:
    """
    Reads CREMA-D: `AudioWAV/1001_DFA_ANG_XX.wav` and `VideoFlash/1001_DFA_ANG_XX.flv`, or one of both.

    The label is the acted one. The videos may be converted, such as `VideoMP4/1001_DFA_ANG_XX.mp4`.

    Source: https://github.com/CheyneyComputerScience/CREMA-D
    """
    for files, (actor, sentence, emotion) in named_files(folder, r"(\d{4})_([A-Z]{3})_([A-Z]{3})_[A-Z]{1,2}"):
        yield _record(CREMA_D_LABELS[emotion], **files, text=CREMA_D_TEXTS[sentence], speaker=actor)


def read_tess(folder: Path) -> Iterator[dict]:
    """Reads TESS: `OAF_angry/OAF_back_angry.wav`."""
    # One clip is called OA_bite_neutral.
    for files, (actress, word, emotion) in named_files(folder, r"([OY]A)F?_([a-z]+)_([a-z]+(?:_[a-z]+)?)"):
        yield _record(emotion, **files, text=f"Say the word {word}.", speaker=f"{actress}F")


def read_savee(folder: Path) -> Iterator[dict]:
    """Reads SAVEE: `DC_a01.wav` or `DC/a01.wav`."""
    for files, (speaker, emotion) in named_files(folder, r"(DC|JE|JK|KL)[_/](a|d|f|h|n|sa|su)\d\d"):
        yield _record(SAVEE_LABELS[emotion], **files, speaker=speaker)


def read_emodb(folder: Path) -> Iterator[dict]:
    """Reads EmoDB: `wav/03a01Fa.wav`."""
    for files, (speaker, sentence, emotion) in named_files(folder, r"(\d\d)([ab]\d\d)([WLEAFTN])[a-z]"):
        yield _record(EMODB_LABELS[emotion], **files, text=EMODB_TEXTS[sentence], speaker=speaker)


def read_nemo(folder: Path) -> Iterator[dict]:
    """Reads nEMO in the layout of its repository: `data.tsv` beside `samples/EB0_anger_1.wav`."""
    for row in read_csv(folder / "data.tsv"):
        clip = folder / "samples" / f"{row['file_id'].removesuffix('.wav')}.wav"
        yield _record(row["emotion"], audio=clip, text=row["raw_text"], speaker=row["speaker_id"])


def read_iemocap(folder: Path) -> Iterator[dict]:
    """
    Reads IEMOCAP: `Session1/dialog/{EmoEvaluation,transcriptions}/DIALOG.txt`,
    `Session1/sentences/wav/DIALOG/TURN.wav`.

    Timestamps of words come from `Session1/sentences/ForcedAlignment/DIALOG/TURN.wdseg`. A speaker is named after the
    session and the sex: `Ses01F`.
    """
    evaluated = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t", re.MULTILINE)
    transcribed = re.compile(r"^(Ses\w+) \[[\d.]+-[\d.]+\]: ?(.*)$", re.MULTILINE)
    for evaluation in sorted(folder.glob("Session[1-5]/dialog/EmoEvaluation/Ses*.txt")):
        session, dialog = evaluation.parents[2], evaluation.stem
        texts = dict(transcribed.findall(_text(session / "dialog" / "transcriptions" / evaluation.name)))
        for turn, code in evaluated.findall(_text(evaluation)):
            text = texts.get(turn, "").strip()
            alignment = session / "sentences" / "ForcedAlignment" / dialog / f"{turn}.wdseg"
            yield _record(
                IEMOCAP_LABELS[code],
                audio=session / "sentences" / "wav" / dialog / f"{turn}.wav",
                text=text,
                speaker=dialog[:5] + turn.rsplit("_", 1)[1][0],
                dialogue=dialog,
                word_times=_aligned_words(_text(alignment), text) if alignment.is_file() else None,
            )


def _aligned_words(alignment: str, text: str) -> list[dict]:
    """Returns the words of `text` that the aligner found (Sphinx, 10 ms frames), with start and end in seconds."""
    segments = re.findall(r"^\s*(\d+)\s+(\d+)\s+-?\d+\s+([^\s<+(]+)", alignment, re.MULTILINE)
    words = text.split()
    # They differ in fillers, and only the text has case and punctuation.
    matcher = SequenceMatcher(
        a=[word.lower() for _, _, word in segments],
        b=[re.sub(r"[^\w']", "", word).lower() for word in words],
        autojunk=False,
    )
    return [
        {
            "word": words[block.b + offset],
            "start": int(segments[block.a + offset][0]) / 100,
            "end": (int(segments[block.a + offset][1]) + 1) / 100,
        }
        for block in matcher.get_matching_blocks()
        for offset in range(block.size)
    ]


def read_meld(folder: Path) -> Iterator[dict]:
    """
    Reads MELD: `train_sent_emo.csv`, `dev_...`, `test_...`, and `dia0_utt0.mp4` in folders that name the split.

    The folders are `train_splits`, `dev_splits_complete` and `output_repeated_splits_test`, or any with `train`, `dev`
    or `test` in their name. A `.wav` of the same name has priority over the sound of the video, and is decoded faster;
    make it with `for clip in */*.mp4; do ffmpeg -i "$clip" -vn -ac 1 -ar 16000 "${clip%.mp4}.wav"; done`. Rows without
    a clip, of which the published files have two, keep their text, and a warning counts them. Videos without a row are
    not read.

    Source: https://github.com/declare-lab/MELD; issue 22 (`dia110_utt7` of dev is missing), `MELD_BROKEN`
    """
    clips = find_files(folder, _meld_key)
    missing, rows = [], 0
    for split in ("train", "dev", "test"):
        for table in sorted(folder.rglob(f"{split}_sent_emo.csv"))[:1]:
            for row in read_csv(table):
                rows += 1
                key = split, row["Dialogue_ID"], row["Utterance_ID"]
                if key not in clips:
                    missing.append(f"{split}/dia{key[1]}_utt{key[2]}")
                yield _record(
                    row["Emotion"],
                    **clips.get(key, NO_FILES),
                    text=row["Utterance"],
                    speaker=row["Speaker"],
                    split=split,
                    dialogue=row["Dialogue_ID"],
                )
    warn_missing(folder, missing, rows)


def _meld_key(file: PurePosixPath) -> tuple[str, str, str] | None:
    """Returns split, dialogue and utterance of a clip."""
    match = re.fullmatch(r"dia(\d+)_utt(\d+)", file.stem)
    splits = re.findall("train|dev|test", file.parent.as_posix())
    if match is None or not splits:
        return None
    key = splits[-1], match[1], match[2]
    return None if key == MELD_BROKEN and is_video(file) else key


def read_mosei(folder: Path) -> Iterator[dict]:
    """
    Reads CMU-MOSEI as a CSV with a segment per row: `file` (or `video`), `index`, `text`, `split`, and the emotion.

    The emotion is `label`, or a column of intensities for each emotion: the largest positive one is the label, neutral
    if none is positive. The clip of segment 3 of video `abc` is `abc_3.wav` or `abc_3.mp4` in any subfolder, as in
    `Raw/Videos/Segmented/Combined` of the published archive, or `Raw/abc/3.mp4`, as in MMSA, or the file that `file`
    names with its suffix; rows without a clip have only text, and a warning counts them. Every video counts as one
    speaker. A table of MMSA, which has no emotions, is skipped; [`read_mmsa`] reads it.

    Raises:
        ValueError: If neither `file` nor `video` names a segment, or there is only a table of MMSA.
    """
    clips = find_files(
        folder, lambda file: file.stem if not file.stem.isdecimal() else f"{file.parent.name}_{file.stem}"
    )
    tables = sorted(folder.glob("*.csv"))
    emotions = [table for table in tables if not _is_of_mmsa(table)]
    if tables and not emotions:
        raise ValueError(
            f"{folder} has no table of emotions, only {tables[0].name} with sentiments. Read these as "
            "mosei-sentiment, with --labels negative neutral positive."
        )
    missing, rows = [], 0
    for table in emotions:
        for row in read_csv(table):
            rows += 1
            video = row.get("file") or row.get("video")
            if not video:
                raise ValueError(
                    f"{table} needs a column `file` or `video` that names each segment; it has {list(row)}."
                )
            named = Path(video)
            is_file = named.suffix in AUDIO_SUFFIXES or is_video(named)
            segment = named.stem if is_file else f"{video}_{row.get('index')}"
            if segment not in clips:
                missing.append(segment)
            yield _record(
                row["label"] if "label" in row else _strongest_emotions(row),
                **clips.get(segment, NO_FILES),
                text=row.get("text"),
                speaker=row.get("video") or video,
                split=row.get("split"),
            )
    warn_missing(folder, missing, rows)


def _is_of_mmsa(table: Path) -> bool:
    return {"video_id", "clip_id", "annotation"} <= set(next(read_csv(table), {}))


def read_mmsa(table: Path) -> Iterator[dict]:
    """
    Reads CMU-MOSI, CMU-MOSEI or CH-SIMS in the layout of MMSA: `label.csv` beside `Raw/VIDEO/CLIP.mp4`.

    The table has the columns `video_id`, `clip_id`, `text`, `annotation` (`Negative`, `Neutral` or `Positive`), which
    is the label, and `mode` (`train`, `valid` or `test`). Intensities are not read: `label`, and in CH-SIMS `label_T`,
    `label_A` and `label_V` for text, audio and video alone; from -3 to 3, in CH-SIMS from -1 to 1. Spreadsheets remove
    the leading zeros of `clip_id`: clip `1` may be `0001.mp4`. Rows without a clip have only text, and a warning
    counts them. Every video counts as one speaker.

    Source: https://github.com/thuiar/MMSA-FET
    """
    clips = find_files(table.parent / "Raw", lambda file: (file.parent.name, file.stem.lstrip("0")))
    missing, rows = [], 0
    for row in read_csv(table):
        rows += 1
        key = row["video_id"], row["clip_id"].lstrip("0")
        if key not in clips:
            missing.append(f"Raw/{row['video_id']}/{row['clip_id']}")
        yield _record(
            row["annotation"],
            **clips.get(key, NO_FILES),
            text=row["text"],
            speaker=row["video_id"],
            split=row["mode"],
        )
    warn_missing(table.parent, missing, rows)


def _strongest_emotions(row: dict[str, str]) -> str:
    intensities = {name: float(value) for name, value in row.items() if value and label_of(name)}
    strongest = max(intensities.values(), default=0.0)
    return "|".join(name for name, value in intensities.items() if value == strongest) if strongest > 0 else "neutral"


def read_goemotions(folder: Path) -> Iterator[dict]:
    """
    Reads GoEmotions: `train.tsv`, `dev.tsv`, `test.tsv` with `emotions.txt`, or the raw `goemotions_1.csv` and so on.

    In the raw tables a row is the rating of one rater; an emotion needs two raters, as in the paper.
    """
    if (folder / "emotions.txt").is_file():
        names = (folder / "emotions.txt").read_text(encoding="utf-8").split()
        for split in ("train", "dev", "test"):
            with (folder / f"{split}.tsv").open(newline="", encoding="utf-8") as file:
                for text, ids, _ in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                    yield _record("|".join(names[int(index)] for index in ids.split(",")), text=text, split=split)
        return
    texts: dict[str, str] = {}
    votes: dict[str, Counter[str]] = {}
    for table in sorted(folder.glob("goemotions*.csv")):
        for row in read_csv(table):
            texts[row["id"]] = row["text"]
            # The columns of the emotions follow those that describe the rating.
            emotions = list(row)[list(row).index("example_very_unclear") + 1 :]
            votes.setdefault(row["id"], Counter()).update(name for name in emotions if row[name] == "1")
    for comment, counts in votes.items():
        yield _record("|".join(name for name, count in counts.items() if count > 1), text=texts[comment])


def read_xed(table: Path) -> Iterator[dict]:
    """
    Reads the lines of XED that people annotated, in English and Finnish, from a table `text,label,language,source`.

    XED has no splits. These are the project's own: 80 % of the texts are for training, 10 % for development and 10 %
    for the test, drawn by a hash of the text without case and runs of whitespace. They depend neither on the order nor
    on the number of the rows, and a text that occurs several times is in one split only.
    """
    yield from _xed_lines(table, "annotated")


def read_xed_projected(table: Path) -> Iterator[dict]:
    """
    Reads the lines of XED in 39 languages whose labels were projected from an annotated line in another language.

    The table and the splits are those of [`read_xed`]. A line and the one that it was projected from are different
    texts, hence may be in different splits.
    """
    yield from _xed_lines(table, "projected")


def _xed_lines(table: Path, source: str) -> Iterator[dict]:
    for row in read_csv(table):
        if row["source"] == source:
            yield _record(row["label"], text=row["text"], split=_hashed_split(row["text"]), language=row["language"])


def _hashed_split(text: str) -> str:
    """Returns the split of a text: `"train"` for 80 % of all texts, `"dev"` and `"test"` for 10 % each."""
    digest = hashlib.sha256(comparable_text(text).encode()).digest()
    return {0: "dev", 1: "test"}.get(int.from_bytes(digest[:8]) % 10, "train")


def _record(
    label: str,
    *,
    audio: Path | None = None,
    video: Path | None = None,
    text: str | None = None,
    speaker: str | None = None,
    split: str | None = None,
    word_times: list[dict] | None = None,
    dialogue: str | None = None,
    language: str | None = None,
) -> dict:
    return {
        "audio": None if audio is None else str(audio),
        "video": None if video is None else str(video),
        "text": text,
        "word_times": word_times,
        "label": label,
        "speaker": speaker or None,
        "split": split or None,
        "dialogue": dialogue or None,
        "language": language or None,
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
