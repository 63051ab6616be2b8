"""
From one item, or a batch of them, to the inputs of a model: what [`MMEmoProcessor`] does, without `transformers`.

Deliberate choices:
- Whatever is wrong with one item is found in `prepare`, so a pipeline can check items one by one and batch them later.
- A missing modality is `None` (or a blank text): its row is zeros under a mask of zeros, and a modality that the whole
  batch lacks is left out.
- Nothing is cut silently: cut tokens and word times are logged, and clips that an extractor would cut are refused.
  What is cut of a dialogue's context, which has a window, is not logged.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np

from mmemo.audio.loading import MIN_AUDIO_SECONDS, AudioInput, load_audio, resample
from mmemo.audio.voice_activity import SAMPLING_RATE, has_voice
from mmemo.timeline.recording import Recording, open_recording
from mmemo.words.dialogue import DialogueText, DialogueTurn, read_context, write_dialogue
from mmemo.words.times import WordTimes, clip_word_times, is_subtitles, locate_words, read_word_times, token_times


logger = logging.getLogger(__name__)

# What a processor reads beside a text; saved with it.
TEXT_SETTINGS = ("context_turns", "context_tokens", "prompt")


class ItemProcessing:
    """
    What all processors share.

    Attributes:
        feature_extractor (*optional*): Clips to features, as one of `transformers` does.
        tokenizer (*optional*): Texts to tokens, as a fast one of `transformers` does.
        max_audio_samples (`int`, *optional*): Samples beyond which the feature extractor would cut a clip.
        audio_padding (`bool` or `str`): The feature extractor's `padding`.
        context_turns, context_tokens (`int`), prompt (`str`): What the model reads of a dialogue, and behind a text;
            see [`MMEmoProcessor`].
    """

    feature_extractor: Any = None
    tokenizer: Any = None
    max_audio_samples: int | None = None
    audio_padding: bool | str = True
    context_turns: int = 0
    context_tokens: int = 0
    prompt: str = ""

    @property
    def _audio_input_name(self) -> str:
        return self.feature_extractor.model_input_names[0]

    def transcribe(self, transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[tuple[str, float, float]]:
        """What a transcriber finds out that is said in a recording, and when."""
        raise NotImplementedError

    def load_audio(
        self, audio: AudioInput, sampling_rate: float | None = None, channel: int | None = None
    ) -> np.ndarray:
        """
        Loads one clip at the feature extractor's rate; see [`load_audio`] for the arguments.

        Returns:
            `np.ndarray` of shape `(samples,)`: float32, mono.

        Raises:
            ValueError: if the clip is refused, too short or too long, or if there is no feature extractor.
        """
        if self.feature_extractor is None:
            raise ValueError("this processor has no feature extractor and takes no audio; pass text.")
        rate = self.feature_extractor.sampling_rate
        waveform = load_audio(audio, sampling_rate, rate, channel)
        if len(waveform) < MIN_AUDIO_SECONDS * rate:
            raise ValueError(
                f"the clip lasts {len(waveform) / rate:.4f} s, but at least {MIN_AUDIO_SECONDS} s are needed; leave "
                "it out, or check its sampling_rate."
            )
        if self.max_audio_samples is not None and len(waveform) > self.max_audio_samples:
            raise ValueError(
                f"the clip lasts {len(waveform) / rate:.2f} s, but {type(self.feature_extractor).__name__} takes at "
                f"most {self.max_audio_samples / rate:.2f} s; cut it, or use the mmemo_audio encoder, which takes any "
                "length."
            )
        return waveform

    def prepare(
        self,
        audio: AudioInput | None = None,
        text: str | WordTimes | None = None,
        word_times: WordTimes | None = None,
        sampling_rate: float | None = None,
        channel: int | None = None,
        index: int | None = None,
        context: list[DialogueTurn] | None = None,
        speaker: str | None = None,
    ) -> dict[str, Any]:
        """
        Loads and checks one item, without computing features. What it returns can be prepared again, unchanged.

        Args:
            audio, text, word_times, sampling_rate, channel, context, speaker: See [`~MMEmoProcessor.__call__`]; of one
                item.
            index (`int`, *optional*): Position in the batch, for error messages: `"audio[2]: ..."`.

        Returns:
            `dict` with
            - **audio** -- float32 array of shape `(samples,)` at the feature extractor's rate, or `None`.
            - **text** -- `str`, or `None` if it is blank and there are no words.
            - **word_times** -- list of `(word, start, end)` in seconds, of single words, sorted, without overlaps and
              within the clip; or `None`.
            - **context** -- the last `context_turns` turns before the text as a list of `(speaker, text)`, or `None`.
            - **speaker** -- `str`, or `None`.

        Raises:
            ValueError: if anything in the item is refused, or if it has neither audio nor text.
        """
        place = "" if index is None else f"[{index}]"
        if audio is not None:
            with _naming(f"audio{place}"):
                audio = self.load_audio(audio, sampling_rate, channel)
        if text is not None and not isinstance(text, (str, os.PathLike, dict, list, tuple)):
            raise ValueError(f"text{place}: expected a str, word times or None, got {type(text).__name__}.")
        times_place = f"word_times{place}"
        if text is not None and (not isinstance(text, str) or is_subtitles(text)):
            if word_times:
                raise ValueError(
                    f"text{place} and {times_place} both say when words were spoken; pass a plain str as text, or "
                    "leave word_times out."
                )
            times_place, text, word_times = f"text{place}", None, text
        words: list[tuple[str, float, float]] = []
        if word_times is not None:
            with _naming(times_place):
                words = read_word_times(word_times)
                if audio is not None:
                    words = clip_word_times(words, len(audio) / self.feature_extractor.sampling_rate)
        if text is None or not text.strip():
            text = " ".join(word for word, _, _ in words) or None
        if text is not None and self.tokenizer is None:
            raise ValueError(f"text{place}: this processor has no tokenizer and takes no text; pass audio.")
        if words and text:
            with _naming(times_place):
                if not self.tokenizer.is_fast:
                    raise ValueError(
                        f"{type(self.tokenizer).__name__} does not say which characters a token covers, which placing "
                        "words in time needs; load a fast tokenizer, or leave word_times out."
                    )
                locate_words([word for word, _, _ in words], text)
        if audio is None and text is None:
            raise ValueError(
                f"audio{place} and text{place} are both missing; pass at least one. A blank text counts as missing."
            )
        turns = self._read_dialogue(text, context, speaker, place)
        return {"audio": audio, "text": text, "word_times": words or None, "context": turns, "speaker": speaker}

    def _read_dialogue(
        self, text: str | None, context: list[DialogueTurn] | None, speaker: str | None, place: str
    ) -> list[tuple[str | None, str]] | None:
        """The turns before a text that are read; refuses those that the model, or nobody, can make use of."""
        if speaker is not None and not isinstance(speaker, str):
            raise ValueError(f"speaker{place}: expected a str or None, got {type(speaker).__name__}.")
        for name, given in (("context", context), ("speaker", speaker)):
            if given and not self.context_turns:
                raise ValueError(
                    f"{name}{place}: this model reads no dialogue, only the text itself; leave {name} out, or train a "
                    "model with context_turns."
                )
            if given and text is None:
                raise ValueError(f"{name}{place} belongs to a text, and there is none; pass text, or leave it out.")
        if context is None:
            return None
        with _naming(f"context{place}"):
            return read_context(context)[-self.context_turns :] or None

    def make_inputs(
        self,
        audio: AudioInput | list[AudioInput | None] | None = None,
        text: str | WordTimes | list[str | WordTimes | None] | None = None,
        word_times: WordTimes | list[WordTimes | None] | None = None,
        segment_times: list[list[tuple[float, float]]] | None = None,
        sampling_rate: float | None = None,
        channel: int | None = None,
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        context: list[DialogueTurn] | list[list[DialogueTurn] | None] | None = None,
        speaker: str | list[str | None] | None = None,
    ) -> dict[str, Any]:
        """The inputs of a model, as lists and NumPy arrays; see [`~MMEmoProcessor.__call__`]."""
        columns = {
            "audio": _as_batch(audio, one=isinstance(_first(audio), Real)),
            "text": _as_batch(text, one=_is_timed_word(_first(text))),
            "word_times": _as_batch(word_times or None, one=_is_timed_word(_first(word_times))),
            "context": _as_batch(context or None, one=isinstance(_first(context), (str, tuple, dict))),
            "speaker": _as_batch(speaker),
        }
        sizes = {name: len(column) for name, column in columns.items() if column is not None}
        if not any(sizes.values()):
            raise ValueError("There is nothing to process; pass audio, text, or both.")
        if len(set(sizes.values())) > 1:
            counts = " but ".join(f"{size} {_PLURALS[name]}" for name, size in sizes.items())
            raise ValueError(f"Got {counts}; they must match 1:1. Pass None where an item has none.")

        size = max(sizes.values())
        rows = zip(*(column or [None] * size for column in columns.values()))
        items = [
            self.prepare(**dict(zip(columns, row)), sampling_rate=sampling_rate, channel=channel, index=index)
            for index, row in enumerate(rows)
        ]
        waveforms = [item["audio"] for item in items]
        features: dict[str, Any] = {}
        if any(waveform is not None for waveform in waveforms):
            features |= self._audio_features(waveforms, audio_kwargs or {})
        starts = features.pop("start_seconds", np.zeros(size))
        if any(item["text"] is not None for item in items):
            features |= self._text_features(items, starts, padding, truncation, max_length)
        if segment_times is not None:
            if len(segment_times) != size:
                raise ValueError(
                    f"Got {len(segment_times)} lists of segment times but {size} items; they must match 1:1."
                )
            features["segment_times"] = _pad_segments(segment_times, starts)
        return features

    def _audio_features(self, waveforms: list[np.ndarray | None], audio_kwargs: dict) -> dict[str, np.ndarray]:
        """Extracts the features of the clips that are there and scatters them into a batch of zeros."""
        present = [index for index, waveform in enumerate(waveforms) if waveform is not None]
        options = {
            "sampling_rate": self.feature_extractor.sampling_rate,
            "padding": self.audio_padding,
            "return_attention_mask": True,
            "return_tensors": "np",
        }
        extracted = self.feature_extractor([waveforms[index] for index in present], **(options | audio_kwargs))
        values = np.asarray(extracted[self._audio_input_name], np.float32)
        # AST's extractor makes no mask: its encoder reads every clip as `max_length` frames.
        mask = np.asarray(extracted.get("attention_mask", np.ones(values.shape[:2])), np.int64)
        starts = np.asarray(extracted.get("start_seconds", np.zeros(len(present))), np.float32)
        batch = {
            self._audio_input_name: np.zeros((len(waveforms), *values.shape[1:]), values.dtype),
            "audio_attention_mask": np.zeros((len(waveforms), mask.shape[1]), mask.dtype),
            "start_seconds": np.zeros(len(waveforms), np.float32),
        }
        for rows, found in zip(batch.values(), (values, mask, starts)):
            rows[present] = found
        return batch

    def _text_features(
        self,
        items: list[dict[str, Any]],
        starts: np.ndarray,
        padding: bool | str,
        truncation: bool,
        max_length: int | None,
    ) -> dict[str, list]:
        """Tokenizes the texts; the tokens of a missing one are padding under a mask of zeros."""
        tokenizer = self.tokenizer
        separator = getattr(tokenizer, "sep_token", None)
        dialogues = [
            write_dialogue(item["text"] or "", item["speaker"], item["context"] or (), self.prompt, separator)
            for item in items
        ]
        encoding = tokenizer(
            [dialogue.whole for dialogue in dialogues],
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=tokenizer.is_fast,
            return_special_tokens_mask=True,
            verbose=False,
        )
        limit = max_length or tokenizer.model_max_length
        rows: list[dict[str, list]] = []
        for index, (item, dialogue) in enumerate(zip(items, dialogues)):
            ids, special = encoding["input_ids"][index], encoding["special_tokens_mask"][index]
            offsets = encoding["offset_mapping"][index] if tokenizer.is_fast else [(0, 0)] * len(ids)
            is_there = item["text"] is not None
            context = dialogue.context_mask(offsets)
            kept = self._keep(dialogue, offsets, context, special, limit if truncation else len(ids), index)
            row = {
                "input_ids": ids if is_there else [tokenizer.pad_token_id] * len(ids),
                "attention_mask": [int(is_there)] * len(ids),
                "context_mask": context,
            }
            if item["word_times"] is not None:
                own = dialogue.own_offsets(offsets)
                row["token_times"] = list(token_times(item["text"], item["word_times"], own, starts[index]))
            rows.append({name: [values[place] for place in kept] for name, values in row.items()})

        fillers: dict[str, Any] = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0}
        if any(1 in row["context_mask"] for row in rows):
            fillers["context_mask"] = 0
        if any("token_times" in row for row in rows):
            fillers["token_times"] = np.full(2, -1.0, np.float32)
        lengths = [len(row["input_ids"]) for row in rows]
        longest = limit if padding == "max_length" else max(lengths)
        is_padded = padding not in (False, "do_not_pad")
        left = tokenizer.padding_side == "left"
        features = {}
        for name, filler in fillers.items():
            columns = [row.get(name, [filler] * length) for row, length in zip(rows, lengths)]
            if is_padded:
                columns = [_pad(values, filler, longest, left) for values in columns]
            features[name] = columns
        return features

    def _keep(
        self,
        dialogue: DialogueText,
        offsets: list[tuple[int, int]],
        context_mask: list[int],
        special: list[int],
        limit: int,
        index: int,
    ) -> list[int]:
        """Which tokens are kept: of the context the last, within its window and the limit; of the text the first."""
        context = [place for place, is_context in enumerate(context_mask) if is_context]
        room = max(limit - (len(special) - len(context)), 0)
        cut = set(context[: max(len(context) - min(self.context_tokens, room), 0)])
        excess = len(special) - len(cut) - limit
        if excess > 0:
            # What is asked behind a text stays.
            own = [
                place
                for place, (begin, _) in enumerate(offsets)
                if not special[place] and not context_mask[place] and begin < dialogue.end
            ]
            from_left = getattr(self.tokenizer, "truncation_side", "right") == "left"
            cut |= set(own[:excess] if from_left else own[-excess:])
            logger.warning(
                f"text[{index}]: {excess} of {len(special) - len(context)} tokens were cut; {limit} is the limit."
            )
        return [place for place in range(len(special)) if place not in cut]

    def check_voice(self, prepared: dict[str, Any]) -> dict[str, Any]:
        """
        What `prepare` returned, and as `has_voice` whether there is a voice or a word in it. Beside words, a sound
        that holds no voice counts as missing.
        """
        if prepared["audio"] is None or self.has_voice(prepared["audio"]):
            return prepared | {"has_voice": True}
        if prepared["text"] is None:
            return prepared | {"has_voice": False}
        return prepared | {"has_voice": True, "audio": None}

    def has_voice(self, samples: np.ndarray) -> bool:
        """Whether a voice is heard in a clip of shape `(samples,)`, at the rate of the feature extractor."""
        samples = resample(samples, self.feature_extractor.sampling_rate, SAMPLING_RATE)
        return has_voice(samples)

    def open_recording(self, audio: AudioInput | None = None, **kwargs: Any) -> Recording:
        """Opens a recording of any length, to be heard window by window; see [`open_recording`]."""
        return open_recording(self, audio, **kwargs)


_PLURALS = {
    "audio": "audios",
    "text": "texts",
    "word_times": "lists of word times",
    "context": "contexts",
    "speaker": "speakers",
}


def _pad(values: list, filler: Any, length: int, left: bool) -> list:
    padding = [filler] * (length - len(values))
    return padding + values if left else values + padding


def _pad_segments(segment_times: list[list[tuple[float, float]]], starts: np.ndarray) -> np.ndarray:
    """Segments from where the frames begin, `(batch, segments, 2)`; what lies before, or is padding, has -1."""
    padded = np.full((len(segment_times), max(map(len, segment_times)), 2), -1.0, np.float32)
    for row, segments, start in zip(padded, segment_times, starts):
        if segments:
            shifted = np.asarray(segments, np.float32) - start
            row[: len(segments)] = np.where(shifted[:, 1:] > 0, np.maximum(shifted, 0), -1.0)
    return padded


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """Puts the place in the batch before the message of a `ValueError` that is raised inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) and batch else None


def _as_batch(value: Any, one: bool = False) -> list | None:
    """Returns a batch as a list, and `one` item as a list of it."""
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) and not one else [value]


def _is_timed_word(entry: Any) -> bool:
    """Whether an entry is a word or chunk of one item; the output of an ASR pipeline, with its chunks, is an item."""
    return (isinstance(entry, dict) and "chunks" not in entry) or isinstance(_first(entry), str)
