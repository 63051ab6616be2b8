"""What is done to a row before it is scored: a modality left out, blanked, spoilt or another row's; no dialogue."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset

from mmemo.audio.loading import SILENCE_PEAK
from mmemo.words.times import read_word_times
from modeling_mmemo.data.augmentation import add_noise, telephone
from modeling_mmemo.data.schema import text_of
from modeling_mmemo.evaluation.scoring import score_items
from modeling_mmemo.evaluation.timelines import speech_edges
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


MODALITIES = ("audio", "text")
AudioChange = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Condition:
    """One way to give rows to the model.

    Args:
        description (`str`): What is done, for the report.
        given (`tuple[str, ...]`): The modalities that a row must have; `"context"` if it must be part of a dialogue.
        change_audio (`Callable`, *optional*):
            Gives other samples for `(samples, sampling_rate, rng)`, all float32 mono.
        blank_text (`bool`): Whether the text is replaced by the empty one.
        drop_context (`bool`): Whether the text comes without its speaker and the turns before it.
        shuffled (`str`, *optional*): The modality that is another row's.
        word_times (`Callable`, *optional*):
            Gives times for the words of `(text, samples, sampling_rate, rng)`; without it they have none.
    """

    description: str
    given: tuple[str, ...]
    change_audio: AudioChange | None = None
    blank_text: bool = False
    drop_context: bool = False
    shuffled: str | None = None
    word_times: Callable[[str, np.ndarray, int, np.random.Generator], list] | None = None


def _hush(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    # Digital silence itself is refused by the processor.
    return rng.uniform(-2 * SILENCE_PEAK, 2 * SILENCE_PEAK, len(audio)).astype(np.float32)


def _white_noise(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal(len(audio)) * np.sqrt(np.mean(audio**2))).astype(np.float32)


def _noisy(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator, snr_db: float) -> np.ndarray:
    return add_noise(audio, snr_db, rng)


def _telephone(audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> np.ndarray:
    return telephone(audio, sampling_rate)


def _aligned(text: str, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> list:
    return read_word_times([(text, *speech_edges(audio, sampling_rate))])


def _misaligned(text: str, audio: np.ndarray, sampling_rate: int, rng: np.random.Generator) -> list:
    words = text.split()
    times = np.sort(rng.uniform(0, len(audio) / sampling_rate, (len(words), 2)), axis=None).reshape(-1, 2)
    return [(word, *map(float, time)) for word, time in zip(words, times)]


ABLATION = {
    "audio": Condition("The audio alone; the text is missing.", ("audio",)),
    "text": Condition("The text alone; the audio is missing.", ("text",)),
    "both": Condition("Audio and text.", MODALITIES),
}
BLANK = {
    "blank audio": Condition("As good as silence (-74 dBFS) of the clip's length, and the text.", MODALITIES, _hush),
    "noise audio": Condition("White noise of the clip's level and length, and the text.", MODALITIES, _white_noise),
    "blank text": Condition("The audio, and an empty text.", MODALITIES, blank_text=True),
}
CONDITIONS = {
    **ABLATION,
    **BLANK,
    "no context": Condition(
        "The text without its speaker and the turns before it.", ("text", "context"), drop_context=True
    ),
    "aligned times": Condition(
        "Audio and text, its words spread over the speech by their lengths.", MODALITIES, word_times=_aligned
    ),
    "shuffled times": Condition("Audio and text, its words at random times.", MODALITIES, word_times=_misaligned),
    "shuffled audio": Condition("The text, and the audio of another row.", MODALITIES, shuffled="audio"),
    "shuffled text": Condition("The audio, and the text of another row.", MODALITIES, shuffled="text"),
    **{
        f"snr {snr} dB": Condition(
            f"Noise in the audio at a signal-to-noise ratio of {snr} dB.", ("audio",), partial(_noisy, snr_db=snr)
        )
        for snr in (20, 10, 0)
    },
    "telephone": Condition("The audio through a telephone band.", ("audio",), _telephone),
}


def applicable_conditions(names: list[str], available: set[str], carriers: set[str]) -> list[str]:
    """The conditions among `names` that mean something for a corpus.

    Args:
        names (`list[str]`): Names in `CONDITIONS`.
        available (`set[str]`): The modalities that the rows have and the model takes: these can be ablated.
        carriers (`set[str]`): Those that carry the emotion: only these are spoilt. And `"context"`, if the rows are of
            dialogues and the model reads them.

    Raises:
        ValueError: If a name is unknown.
    """
    if unknown := [name for name in names if name not in CONDITIONS]:
        raise ValueError(f"Unknown conditions {unknown}; the known ones are {list(CONDITIONS)}.")
    return [name for name in names if set(CONDITIONS[name].given) <= (available if name in ABLATION else carriers)]


def score_condition(
    emotion: MultimodalEmotionPipeline,
    name: str,
    rows: Dataset,
    lengths: np.ndarray,
    carriers: set[str],
    batch_size: int = 16,
    seed: int = 0,
) -> np.ndarray:
    """Scores rows under the condition `name`, the same for the same seed.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        name (`str`): A name in `CONDITIONS`.
        rows (`datasets.Dataset`): With `audio`, and `text` with its `context` and `said_by`.
        lengths (`np.ndarray` of shape `(rows,)`): See [`row_lengths`].
        carriers (`set[str]`): The modalities that are given beside a spoilt one.
        batch_size (`int`, *optional*, defaults to 16): Items that the model sees at once.
        seed (`int`, *optional*, defaults to 0): Of noise and shuffling.

    Returns:
        `np.ndarray` of shape `(rows, labels)`.

    Raises:
        ValueError: If one row is to be shuffled.
    """
    condition = CONDITIONS[name]
    given = condition.given if name in ABLATION else carriers
    partners = _other_rows(len(rows), seed) if condition.shuffled else np.arange(len(rows))
    sampling_rate = emotion.processor.feature_extractor.sampling_rate if "audio" in given else None

    def make_item(row: int) -> dict[str, Any]:
        sources = {modality: row for modality in MODALITIES if modality in given}
        if condition.shuffled:
            sources[condition.shuffled] = int(partners[row])
        item = {"audio": rows[sources["audio"]]["audio"]} if "audio" in sources else {}
        if "text" in sources:
            item |= {"text": ""} if condition.blank_text else text_of(rows[sources["text"]])
        if condition.drop_context:
            item = {modality: item[modality] for modality in sources}
        if condition.change_audio is not None:
            audio = emotion.processor.load_audio(item["audio"])
            # A generator for each row: its noise does not depend on the order in which rows are scored.
            item["audio"] = condition.change_audio(audio, sampling_rate, np.random.default_rng([seed, row]))
        if condition.word_times is not None:
            audio, rng = emotion.processor.load_audio(item["audio"]), np.random.default_rng([seed, row])
            item["word_times"] = condition.word_times(item["text"], audio, sampling_rate, rng)
        return item

    return score_items(emotion, make_item, lengths, batch_size, name)


def _other_rows(count: int, seed: int) -> np.ndarray:
    """For each row another one, every row taken once: the next on a random tour of all."""
    if count < 2:
        raise ValueError(f"There must be at least 2 rows to shuffle, not {count}; leave the shuffled conditions out.")
    tour = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, int)
    partners[tour] = np.roll(tour, -1)
    return partners
