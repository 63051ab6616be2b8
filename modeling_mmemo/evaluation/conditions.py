"""
Evaluation conditions: a modality missing, blank, corrupted or taken from another row; text without its dialogue.

Frames are changed before the face in them is found, as a camera or a network would change them.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageFilter

from mmemo.audio.loading import SILENCE_PEAK
from mmemo.modalities import MODALITIES
from mmemo.video.face import FaceSequence, read_face
from mmemo.video.frames import open_video
from mmemo.words.times import read_word_times
from modeling_mmemo.data.augmentation import add_noise, telephone
from modeling_mmemo.data.faces import FaceCache
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.evaluation.scoring import score_items
from modeling_mmemo.evaluation.timelines import speech_edges
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


SPEECH = ("audio", "text")
BLUR_SHARE = 0.01  # of the height of a frame
DARK_SHARE = 0.1  # of the brightness of a frame
FrameChange = Callable[[np.ndarray, np.ndarray], np.ndarray]
AudioChange = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Condition:
    """
    How rows are changed before they are scored.

    Args:
        description (`str`): Description for the report.
        needs (`tuple[str, ...]`): Modalities that a row must have; `"context"` if it must be part of a dialogue.
        change_audio (`Callable`, *optional*):
            Function from `(samples, sampling_rate, rng)` to new samples, float32 mono.
        blank_text (`bool`, *optional*, defaults to `False`): Whether to replace the text by an empty string.
        change_frame (`Callable`, *optional*):
            Function from a frame and the first frame of its video, `(height, width, 3)`, uint8 RGB, to another frame.
        dropped (`str`, *optional*): Modality that is removed.
        needs_others (`bool`, *optional*, defaults to `False`): Whether a row must have more modalities than `needs`.
        drop_context (`bool`, *optional*, defaults to `False`):
            Whether to remove the speaker of the text and the turns before it.
        shuffled (`str`, *optional*): Modality to take from another row.
        word_times (`Callable`, *optional*):
            Function from `(text, samples, sampling_rate, rng)` to word timestamps; no timestamps by default.
    """

    description: str
    needs: tuple[str, ...]
    change_audio: AudioChange | None = None
    blank_text: bool = False
    change_frame: FrameChange | None = None
    dropped: str | None = None
    needs_others: bool = False
    drop_context: bool = False
    shuffled: str | None = None
    word_times: Callable[[str, np.ndarray, int, np.random.Generator], list] | None = None


def _near_silence(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    # The processor raises on digital silence.
    return rng.uniform(-2 * SILENCE_PEAK, 2 * SILENCE_PEAK, len(audio)).astype(np.float32)


def _white_noise(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal(len(audio)) * np.sqrt(np.mean(audio**2))).astype(np.float32)


def _add_noise(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    return add_noise(audio, snr_db, rng)


def _telephone(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    return telephone(audio, sampling_rate)


def _align_words(text: str, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> list:
    return read_word_times([(text, *speech_edges(audio, sampling_rate))])


def _misalign_words(text: str, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> list:
    words = text.split()
    times = np.sort(rng.uniform(0, len(audio) / sampling_rate, (len(words), 2)), axis=None).reshape(-1, 2)
    return [(word, *map(float, time)) for word, time in zip(words, times)]


def _blur(frame: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(BLUR_SHARE * len(frame))))


def _darken(frame: np.ndarray, first: np.ndarray) -> np.ndarray:
    return (frame * DARK_SHARE).round().astype(np.uint8)


def _freeze(frame: np.ndarray, first: np.ndarray) -> np.ndarray:
    return first


# The conditions for models and rows with video come last: those of audio and text have kept their order.
ABLATION = {
    "audio": Condition("Audio only; the text is missing.", ("audio",)),
    "text": Condition("Text only; the audio is missing.", ("text",)),
    "both": Condition("Audio and text.", SPEECH),
}
VIDEO_ABLATION = {
    "video": Condition("Video only; audio and text are missing.", ("video",)),
    "audio+video": Condition("Audio and video.", ("audio", "video")),
    "text+video": Condition("Text and video.", ("text", "video")),
    "all": Condition("Audio, text and video.", MODALITIES),
}
ABLATIONS = ABLATION | VIDEO_ABLATION
BLANK = {
    "blank audio": Condition("Text, with near-silence (-74 dBFS) of the clip's length.", SPEECH, _near_silence),
    "noise audio": Condition("Text, with white noise of the clip's level and length.", SPEECH, _white_noise),
    "blank text": Condition("Audio, with an empty text.", SPEECH, blank_text=True),
}
VIDEO_CONDITIONS = {
    **VIDEO_ABLATION,
    "face missing": Condition(
        "The other modalities; the video is missing.", ("video",), dropped="video", needs_others=True
    ),
    "blurred face": Condition(
        f"Frames blurred, with a standard deviation of {BLUR_SHARE:.0%} of their height.",
        ("video",),
        change_frame=_blur,
    ),
    "dark face": Condition(f"Frames at {DARK_SHARE:.0%} of their brightness.", ("video",), change_frame=_darken),
    "frozen face": Condition("The first frame during the whole video.", ("video",), change_frame=_freeze),
    "shuffled video": Condition("The video of another row.", ("video",), shuffled="video", needs_others=True),
}
CONDITIONS = {
    **ABLATION,
    **BLANK,
    "no context": Condition(
        "Text without its speaker and without the turns before it.", ("text", "context"), drop_context=True
    ),
    "aligned times": Condition(
        "Audio and text; words are spread over the speech in proportion to their lengths.",
        SPEECH,
        word_times=_align_words,
    ),
    "shuffled times": Condition("Audio and text; words have random timestamps.", SPEECH, word_times=_misalign_words),
    "shuffled audio": Condition("Text, with the audio of another row.", SPEECH, shuffled="audio"),
    "shuffled text": Condition("Audio, with the text of another row.", SPEECH, shuffled="text"),
    **{
        f"snr {snr} dB": Condition(
            f"Noise added to the audio at a signal-to-noise ratio of {snr} dB.",
            ("audio",),
            partial(_add_noise, snr_db=snr),
        )
        for snr in (20, 10, 0)
    },
    "telephone": Condition("Audio filtered to the telephone band.", ("audio",), _telephone),
    **VIDEO_CONDITIONS,
}

# The main condition of rows that have different modalities.
AS_GIVEN = "as given"
EVERY_CONDITION = {**CONDITIONS, AS_GIVEN: Condition("Each row with the modalities that it has.", ())}


def applicable_conditions(names: list[str], available: set[str], carriers: set[str]) -> list[str]:
    """
    Selects the conditions that apply to a corpus.

    Args:
        names (`list[str]`): Names in `CONDITIONS`.
        available (`set[str]`): Modalities that the rows have and the model accepts; these can be ablated.
        carriers (`set[str]`):
            Modalities that carry the emotion; only these are changed. Includes `"context"` if the rows have dialogue
            context and the model uses it.

    Raises:
        ValueError: If a name is unknown.
    """
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ValueError(f"Unknown conditions {unknown}; choose among {list(CONDITIONS)}.")

    def applies(name: str) -> bool:
        condition, found = CONDITIONS[name], available if name in ABLATIONS else carriers
        others = found & {*MODALITIES} - {*condition.needs}
        return set(condition.needs) <= found and (bool(others) or not condition.needs_others)

    return [name for name in names if applies(name)]


def ablation_of(modalities: Collection[str]) -> str:
    """Returns the name of the condition with these modalities and no others."""
    return next(name for name, condition in ABLATIONS.items() if set(condition.needs) == set(modalities))


def score_condition(
    emotion: MultimodalEmotionPipeline,
    name: str,
    rows: Dataset,
    lengths: np.ndarray,
    carriers: set[str],
    batch_size: int = 16,
    seed: int = 0,
    faces: FaceCache | None = None,
) -> np.ndarray:
    """
    Scores rows under one condition; deterministic for a given seed.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        name (`str`): A name in `EVERY_CONDITION`.
        rows (`datasets.Dataset`): Rows with `audio`, `text`, `video`, `context` and `said_by`.
        lengths (`np.ndarray` of shape `(rows,)`): See [`row_lengths`].
        carriers (`set[str]`): Modalities that carry the emotion, which the model receives.
        batch_size (`int`, *optional*, defaults to 16): Items per batch.
        seed (`int`, *optional*, defaults to 0): Seed of noise and shuffling.
        faces (`FaceCache`, *optional*): Follows the faces in videos; for a model that encodes video.

    Returns:
        `np.ndarray` of shape `(rows, labels)`: scores; equal ones for a row of which nothing is left, because its face
        is not found in changed frames.

    Raises:
        ValueError: If the condition shuffles rows and there is only one.
    """
    condition = EVERY_CONDITION[name]
    given = condition.needs if name in ABLATIONS else carriers
    partners = _other_rows(len(rows), seed) if condition.shuffled else np.arange(len(rows))
    sampling_rate = emotion.processor.feature_extractor.sampling_rate if "audio" in given else None

    def make_item(row: int) -> dict[str, Any] | None:
        sources = {modality: row for modality in MODALITIES if modality in given and modality != condition.dropped}
        if name == AS_GIVEN:
            sources = {modality: row for modality in sources if is_present(rows[row][modality])}
        if condition.shuffled:
            sources[condition.shuffled] = int(partners[row])
        item = {"audio": rows[sources["audio"]]["audio"]} if "audio" in sources else {}
        if "text" in sources:
            item |= {"text": ""} if condition.blank_text else text_of(rows[sources["text"]])
        if condition.drop_context:
            item = {modality: item[modality] for modality in sources if modality in item}
        if "video" in sources:
            item["video"] = find_face(faces, rows[sources["video"]]["video"], condition.change_frame)
        if condition.change_audio is not None:
            audio = emotion.processor.load_audio(item["audio"])
            # One generator per row: the noise does not depend on the order in which rows are scored.
            item["audio"] = condition.change_audio(audio, sampling_rate, np.random.default_rng([seed, row]))
        if condition.word_times is not None:
            audio, rng = emotion.processor.load_audio(item["audio"]), np.random.default_rng([seed, row])
            item["word_times"] = condition.word_times(item["text"], audio, sampling_rate, rng)
        return item if any(item.get(modality) is not None for modality in MODALITIES) else None

    return score_items(emotion, make_item, lengths, batch_size, name)


def find_face(faces: FaceCache, video: dict[str, Any], change: FrameChange | None) -> FaceSequence | None:
    """
    Returns the face in a video, `None` if there is none.

    Args:
        faces (`FaceCache`): Reads the face, if no frame is changed.
        video (`dict`): A cell of the column `video`.
        change (`Callable`, *optional*): See [`Condition`].
    """
    if change is None:
        return faces.read(video)
    processor, source = faces.processor, open_video(video)
    rate = processor.frames_per_second

    def changed() -> Iterator[tuple[float, np.ndarray]]:
        first = None
        for start, frame in source.frames(rate):
            first = frame if first is None else first
            yield start, change(frame, first)

    face = read_face(changed(), rate, crop_size=processor.crop_size)
    return face if face.is_present.any() else None


def is_present(value: Any) -> bool:
    """Whether a row has a modality; a blank text counts as missing."""
    return bool(value.strip() if isinstance(value, str) else value)


def _other_rows(count: int, seed: int) -> np.ndarray:
    """Returns the index of another row for each row, each used once: the next one on a random tour of all rows."""
    if count < 2:
        raise ValueError(f"Shuffling needs at least 2 rows, got {count}; leave the shuffled conditions out.")
    tour = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, int)
    partners[tour] = np.roll(tour, -1)
    return partners
