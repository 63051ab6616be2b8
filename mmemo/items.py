"""
Items: prepares one utterance (audio, text, video, or several of them) and collates a batch to model inputs.

Deliberate choices:
- `prepare` loads and validates one item, once. Its result, a [`PreparedItem`], is
  immutable and goes to `collate` as it is: nothing is loaded, checked or aligned a second time.
- A clip is cut to its speech, so that silence around it does not change a prediction; timestamps move with it. Frames
  of a video are all kept, since a face has an expression in a pause, too.
- A missing modality is `None` (or a blank text): its row is zeros under a mask of zeros. A modality that is missing
  from the whole batch is left out of the inputs.
- Nothing is truncated silently: truncated tokens and clipped word timestamps are logged, and audio that a feature
  extractor would truncate raises an error. Dialogue context is the exception, since it has a documented window.
- NaN and texts without visible characters count as missing, with a warning.
"""

import logging
import math
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from mmemo.audio.loading import MIN_AUDIO_SECONDS, AudioInput, load_audio
from mmemo.audio.speech import SpeechCut, cut_to_speech
from mmemo.video.face import FaceSequence, read_face
from mmemo.video.frames import VideoInput, VideoSource, open_video
from mmemo.video.landmarks import BLENDSHAPES
from mmemo.words.dialogue import DialogueText, DialogueTurn, check_characters, read_context, write_dialogue
from mmemo.words.times import (
    WordTimes,
    locate_words,
    read_word_times,
    separate_word_times,
    token_times,
)


logger = logging.getLogger(__name__)

ITEM_KEYS = ("audio", "text", "video", "word_times", "sampling_rate", "fps", "context", "speaker")
# Settings of the encoders' inputs; saved with the processor.
TEXT_SETTINGS = ("context_turns", "context_tokens", "prompt")
AUDIO_SETTINGS = ("speech_padding_s", "max_speech_s")
VIDEO_SETTINGS = ("frames_per_second", "crop_size", "image_mean", "image_std")
SPEECH_PADDING_SECONDS, MAX_SPEECH_SECONDS = 0.1, 10.0


@dataclass(frozen=True, eq=False)
class PreparedItem:
    """
    One item, loaded and checked by [`~ItemProcessing.prepare`].

    Args:
        audio (`np.ndarray` of shape `(samples,)`, *optional*):
            float32 mono samples at the feature extractor's sampling rate, cut to their speech; `None` if missing.
        text (`str`, *optional*): The text; `None` if missing.
        video ([`FaceSequence`], *optional*): The face in the frames, in seconds of `audio`; `None` if missing.
        word_times (`tuple` of `(word, start, end)`):
            Timestamps of single words in seconds of `audio`, sorted, without overlaps; empty if unknown.
        word_spans (`tuple` of `(begin, end)`): The characters of `text` that each of these words covers.
        context (`tuple` of `(speaker, text)`): The previous turns that the model encodes, oldest first.
        speaker (`str`, *optional*): The speaker of `text`.
        segment_times (`tuple` of `(start, end)`, *optional*): Segments to predict, in seconds.
        has_speech (`bool`): Whether the audio contains speech, as far as that was detected.
        recording (`dict`, *optional*):
            The item itself if it has too much speech for one input: it is predicted window by window.
        channel (`int`, *optional*): The channel of `recording`.
    """

    audio: np.ndarray | None = None
    text: str | None = None
    video: FaceSequence | None = None
    word_times: tuple[tuple[str, float, float], ...] = ()
    word_spans: tuple[tuple[int, int], ...] = ()
    context: tuple[tuple[str | None, str], ...] = ()
    speaker: str | None = None
    segment_times: tuple[tuple[float, float], ...] | None = None
    has_speech: bool = True
    recording: dict[str, Any] | None = None
    channel: int | None = None


class ItemProcessing:
    """
    The part of a processor that needs neither torch nor `transformers`.

    Attributes:
        feature_extractor (*optional*): Computes features of audio, with the interface of `transformers`.
        tokenizer (*optional*): Tokenizes texts, with the interface of a fast tokenizer of `transformers`.
        max_audio_samples (`int`, *optional*): Number of samples beyond which the feature extractor would truncate.
        audio_padding (`bool` or `str`): The feature extractor's `padding`.
        context_turns, context_tokens (`int`), prompt (`str`), speech_padding_s (`float`, *optional*),
        max_speech_s (`float`), frames_per_second (`float`, *optional*), crop_size (`int`, *optional*), image_mean,
        image_std (`list[float]`, *optional*):
            See [`MMEmoProcessor`].
    """

    feature_extractor: Any = None
    tokenizer: Any = None
    max_audio_samples: int | None = None
    audio_padding: bool | str = True
    context_turns: int = 0
    context_tokens: int = 0
    prompt: str = ""
    speech_padding_s: float | None = SPEECH_PADDING_SECONDS
    max_speech_s: float = MAX_SPEECH_SECONDS
    frames_per_second: float | None = None
    crop_size: int | None = None
    image_mean: list[float] | None = None
    image_std: list[float] | None = None

    @property
    def _audio_input_name(self) -> str:
        return self.feature_extractor.model_input_names[0]

    def load_audio(
        self, audio: AudioInput, sampling_rate: float | None = None, channel: int | None = None
    ) -> np.ndarray:
        """
        Loads one clip at the feature extractor's sampling rate; see [`load_audio`] for the arguments.

        Returns:
            `np.ndarray` of shape `(samples,)`: float32, mono.

        Raises:
            ValueError: If the clip is invalid or too short, or if there is no feature extractor.
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
        return waveform

    def cut_to_speech(self, waveform: np.ndarray) -> SpeechCut | None:
        """
        Cuts a clip, as [`~ItemProcessing.load_audio`] returns it, to its speech; see [`cut_to_speech`].

        Returns:
            [`SpeechCut`] or `None`: `None` if it contains no speech.
        """
        return cut_to_speech(waveform, self.feature_extractor.sampling_rate, self.speech_padding_s or 0.0)

    def load_video(
        self, video: VideoInput | VideoSource | FaceSequence, fps: float | None = None, face: int | None = None
    ) -> FaceSequence:
        """
        Follows a face through a video, at `frames_per_second`.

        Args:
            video (`VideoInput`): The video or image; an open one, or a face that was followed before.
            fps (`float`, *optional*): Frames per second of bare frames; see [`open_video`].
            face (`int`, *optional*): The face, by rank; see [`read_face`].

        Raises:
            ValueError: If the video is invalid, has no such face, or if the model takes no video.
        """
        if self.frames_per_second is None:
            raise ValueError(
                "this model has no video encoder; pass audio or text, or load a model that encodes video."
            )
        if isinstance(video, FaceSequence):
            return video
        source = video if isinstance(video, VideoSource) else open_video(video, fps)
        return read_face(source.frames(self.frames_per_second), self.frames_per_second, face, self.crop_size)

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
        segment_times: Sequence[tuple[float, float]] | None = None,
        video: VideoInput | FaceSequence | None = None,
        fps: float | None = None,
        face: int | None = None,
    ) -> PreparedItem:
        """
        Loads and checks one item, without computing features.

        Args:
            audio, text, word_times, sampling_rate, channel, context, speaker, segment_times, video, fps, face:
                As in [`~MMEmoProcessor.__call__`], of one item. The sound of a video is not taken as audio.
            index (`int`, *optional*): Position in the batch, for error messages: `"audio[2]: ..."`.

        Returns:
            [`PreparedItem`]: The item, of which `context` holds the last `context_turns` turns.

        Raises:
            ValueError: If any part of the item is invalid, or if audio, text and video are missing.
        """
        place = "" if index is None else f"[{index}]"
        if (audio := given(audio, f"audio{place}")) is not None:
            with prefixed(f"audio{place}"):
                audio = self.load_audio(audio, sampling_rate, channel)
        text, words = self._read_text(text, word_times, audio, place)
        sequence = self._read_video(video, fps, face, place)
        has_speech = True
        # Segments are those of a window, which a timeline has cut itself.
        if audio is not None and segment_times is None and self.speech_padding_s is not None:
            cut = self.cut_to_speech(audio)
            has_speech = cut is not None
            if cut is not None:
                audio = cut.samples
                words = [(word, cut.to_cut(start), cut.to_cut(end)) for word, start, end in words]
                sequence = None if sequence is None else replace(sequence, times=cut.to_cut(sequence.times))
        spans: list[tuple[int, int]] = []
        if words and text:
            with prefixed(f"word_times{place}"):
                if not self.tokenizer.is_fast:
                    raise ValueError(
                        f"{type(self.tokenizer).__name__} returns no character offsets of its tokens, which word "
                        "timestamps need; load a fast tokenizer, or leave word_times out."
                    )
                spans = locate_words([word for word, _, _ in words], text)
        if audio is None and text is None and sequence is None:
            if given(video, f"video{place}") is not None:
                raise ValueError(f"video{place}: no face was found, and there is neither audio nor text.")
            names = f"audio{place} and text{place} are both"
            if self.frames_per_second is not None:
                names = f"audio{place}, text{place} and video{place} are all"
            raise ValueError(f"{names} missing; pass at least one. A blank text counts as missing.")
        return PreparedItem(
            audio=audio,
            text=text,
            video=sequence,
            word_times=tuple(words),
            word_spans=tuple(spans),
            context=tuple(self._read_dialogue(text, context, speaker, place)),
            speaker=speaker,
            segment_times=None if segment_times is None else tuple(segment_times),
            has_speech=has_speech,
        )

    def _read_video(self, video: Any, fps: float | None, face: int | None, place: str) -> FaceSequence | None:
        """Returns the face in a video, `None` if there is no video or no face in it."""
        video = given(video, f"video{place}")
        if video is None:
            for name, option in (("fps", fps), ("face", face)):
                if option is not None:
                    raise ValueError(f"{name}{place}={option!r} is about a video, and there is none; leave it out.")
            return None
        with prefixed(f"video{place}"):
            sequence = self.load_video(video, fps, face)
        # Of a window of a recording, whose face may have left.
        return sequence if sequence.is_present.any() else None

    def _read_text(
        self, text: str | WordTimes | None, word_times: WordTimes | None, audio: np.ndarray | None, place: str
    ) -> tuple[str | None, list[tuple[str, float, float]]]:
        """Returns the text and the timestamps of its words, whichever of the two arguments contained them."""
        text, word_times = given(text, f"text{place}"), given(word_times, f"word_times{place}")
        plain, word_times = separate_word_times(text, word_times, place)
        times_place = f"word_times{place}" if plain is text else f"text{place}"
        text = plain
        words: list[tuple[str, float, float]] = []
        if word_times is not None:
            with prefixed(times_place):
                seconds = None if audio is None else len(audio) / self.feature_extractor.sampling_rate
                words = read_word_times(word_times, seconds)
        if text is None:
            text = " ".join(word for word, _, _ in words) or None
        if text is not None and self.tokenizer is None:
            raise ValueError(f"text{place}: this processor has no tokenizer and takes no text; pass audio.")
        if text is not None:
            with prefixed(f"text{place}"):
                check_characters(text)
        return text, words

    def has_known_tokens(self, text: str) -> bool:
        """
        Whether the tokenizer knows any character of a text; logs a warning if it does not know most of them.

        A slow tokenizer, which does not tell which characters a token stands for, is taken to know all of them.

        Args:
            text (`str`): A text, not blank.

        Raises:
            ValueError: If the text has a lone surrogate.
        """
        with prefixed("text"):
            check_characters(text)
        unknown, visible = self.count_unknown(text)
        if unknown == visible:
            logger.warning(f"text: the tokenizer knows no token of {text[:40]!r}, so it counts as missing.")
        elif 2 * unknown > visible:
            logger.warning(
                f"text: the tokenizer does not know {unknown} of {visible} characters of {text[:40]!r}; the model may "
                "not have been trained on this language or script."
            )
        return unknown != visible

    def count_unknown(self, text: str) -> tuple[int, int]:
        """Returns the number of visible characters of a text that the tokenizer does not know, and of all of them."""
        tokenizer = self.tokenizer
        visible = {place for place, character in enumerate(text) if not character.isspace()}
        if not tokenizer.is_fast:
            return 0, len(visible)
        encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
        tokens = zip(encoding["input_ids"], encoding["offset_mapping"])
        # Not tokens: those of sentencepiece for the beginning of a word are known in every script.
        unknown = {place for token, span in tokens if token == tokenizer.unk_token_id for place in range(*span)}
        return len(unknown & visible), len(visible)

    def excess_tokens(self, text: str) -> int:
        """Returns the number of tokens that [`~ItemProcessing.collate`] would truncate from a text; 0 for none."""
        whole = write_dialogue(text, None, (), self.prompt, getattr(self.tokenizer, "sep_token", None)).whole
        return max(len(self.tokenizer(whole, verbose=False)["input_ids"]) - self.tokenizer.model_max_length, 0)

    def _read_dialogue(
        self, text: str | None, context: list[DialogueTurn] | None, speaker: str | None, place: str
    ) -> list[tuple[str | None, str]]:
        """Returns the turns that the model encodes; raises if the model takes none or there is no text."""
        if speaker is not None and not isinstance(speaker, str):
            raise ValueError(f"speaker{place}: expected a str or None, got {type(speaker).__name__}.")
        if speaker is not None:
            with prefixed(f"speaker{place}"):
                check_characters(speaker)
        for name, given in (("context", context), ("speaker", speaker)):
            if given and not self.context_turns:
                raise ValueError(
                    f"{name}{place}: this model takes no dialogue context; leave {name} out, or train a model with "
                    "context_turns."
                )
            if given and text is None:
                raise ValueError(f"{name}{place} needs a text; pass text, or leave {name} out.")
        if context is None:
            return []
        with prefixed(f"context{place}"):
            return read_context(context)[-self.context_turns :]

    def collate(
        self,
        items: Sequence[PreparedItem],
        padding: bool | str = True,
        truncation: bool = True,
        max_length: int | None = None,
        audio_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """
        Computes the inputs of a model for a batch of prepared items.

        Args:
            items (`Sequence[PreparedItem]`): The batch, at least one item.
            padding, truncation, max_length, audio_kwargs: See [`~MMEmoProcessor.__call__`].

        Returns:
            `dict`: Lists and NumPy arrays; see [`~MMEmoProcessor.__call__`] for names and shapes.
        """
        waveforms = [item.audio for item in items]
        inputs: dict[str, Any] = {}
        if any(waveform is not None for waveform in waveforms):
            inputs |= self._audio_inputs(waveforms, audio_kwargs or {})
        starts = inputs.pop("start_seconds", np.zeros(len(items)))
        if any(item.text is not None for item in items):
            inputs |= self._text_inputs(items, starts, padding, truncation, max_length)
        if any(item.video is not None for item in items):
            inputs |= self._video_inputs([item.video for item in items], starts)
        if any(item.segment_times is not None for item in items):
            inputs["segment_times"] = _pad_segments([item.segment_times or () for item in items], starts)
        return inputs

    def extract_features(self, waveforms: list[np.ndarray], **options: Any) -> Any:
        """Computes the features of loaded clips, each of shape `(samples,)`, with the feature extractor."""
        return self.feature_extractor(waveforms, **options)

    def _audio_inputs(self, waveforms: list[np.ndarray | None], audio_kwargs: dict) -> dict[str, np.ndarray]:
        """Computes the features of the clips that are present and scatters them into a batch of zeros."""
        present = [index for index, waveform in enumerate(waveforms) if waveform is not None]
        self._check_lengths(waveforms)
        options = {
            "sampling_rate": self.feature_extractor.sampling_rate,
            "padding": self.audio_padding,
            "return_attention_mask": True,
            "return_tensors": "np",
        }
        extracted = self.extract_features(
            [waveform for waveform in waveforms if waveform is not None], **(options | audio_kwargs)
        )
        values = np.asarray(extracted[self._audio_input_name], np.float32)
        # AST's feature extractor returns no mask: its encoder takes every clip as `max_length` frames.
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

    def _video_inputs(self, faces: list[FaceSequence | None], starts: np.ndarray) -> dict[str, np.ndarray]:
        """Pads the faces to one number of frames; a missing video is zeros under a mask of zeros."""
        count = max(len(face.times) for face in faces if face is not None)
        batch: dict[str, np.ndarray] = {
            "video_attention_mask": np.zeros((len(faces), count), np.int64),
            "video_times": np.full((len(faces), count, 2), -1.0, np.float32),
        }
        if self.crop_size is None:
            batch["video_features"] = np.zeros((len(faces), count, len(BLENDSHAPES)), np.float32)
        else:
            batch["pixel_values"] = np.zeros((len(faces), count, 3, self.crop_size, self.crop_size), np.float32)
        for row, face in enumerate(faces):
            if face is None:
                continue
            frames = slice(len(face.times))
            batch["video_attention_mask"][row, frames] = face.is_present
            times = face.times - starts[row]
            batch["video_times"][row, frames] = np.where(times[:, 1:] > 0, np.maximum(times, 0), -1.0)
            if self.crop_size is None:
                batch["video_features"][row, frames] = face.blendshapes
            else:
                batch["pixel_values"][row, frames] = self._pixel_values(face.crops)
        return batch

    def _pixel_values(self, crops: np.ndarray | None) -> np.ndarray:
        """Scales pictures of a face, `(frames, size, size, 3)`, to the range of the image encoder, channels first."""
        if crops is None or crops.shape[1] != self.crop_size:
            size = "no pictures" if crops is None else f"pictures of {crops.shape[1]} pixels"
            raise ValueError(f"This model encodes faces of {self.crop_size} pixels, but the video has {size}.")
        mean, std = (np.asarray(values, np.float32) for values in (self.image_mean, self.image_std))
        return ((crops.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)

    def _check_lengths(self, waveforms: list[np.ndarray | None]) -> None:
        """Raises if the feature extractor would truncate a clip."""
        if self.max_audio_samples is None:
            return
        rate = self.feature_extractor.sampling_rate
        for position, waveform in enumerate(waveforms):
            if waveform is not None and len(waveform) > self.max_audio_samples:
                raise ValueError(
                    f"audio[{position}]: the speech of the clip lasts {len(waveform) / rate:.2f} s, but "
                    f"{type(self.feature_extractor).__name__} takes at most {self.max_audio_samples / rate:.2f} s; "
                    "cut it, predict it with the pipeline, or use the mmemo_audio encoder, which takes any length."
                )

    def _text_inputs(
        self,
        items: Sequence[PreparedItem],
        starts: np.ndarray,
        padding: bool | str,
        truncation: bool,
        max_length: int | None,
    ) -> dict[str, list]:
        """Tokenizes the texts; a missing text is one row of padding under a mask of zeros."""
        tokenizer = self.tokenizer
        separator = getattr(tokenizer, "sep_token", None)
        dialogues = [
            write_dialogue(item.text or "", item.speaker, item.context, self.prompt, separator) for item in items
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
            is_present = item.text is not None
            context = dialogue.context_mask(offsets)
            row = {
                "input_ids": ids if is_present else [tokenizer.pad_token_id] * len(ids),
                "attention_mask": [int(is_present)] * len(ids),
                "context_mask": context,
            }
            if item.word_times:
                own = dialogue.own_offsets(offsets)
                row["token_times"] = list(token_times(item.word_times, item.word_spans, own, starts[index]))
            kept = self._kept_tokens(dialogue, offsets, context, special, limit if truncation else len(ids), index)
            rows.append({name: [values[place] for place in kept] for name, values in row.items()})
        return self._pad_rows(rows, limit, padding)

    def _pad_rows(self, rows: list[dict[str, list]], limit: int, padding: bool | str) -> dict[str, list]:
        """Pads the rows of a batch to one length; leaves out columns that no row uses."""
        fillers: dict[str, Any] = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0}
        if any(1 in row["context_mask"] for row in rows):
            fillers["context_mask"] = 0
        if any("token_times" in row for row in rows):
            fillers["token_times"] = np.full(2, -1.0, np.float32)
        lengths = [len(row["input_ids"]) for row in rows]
        longest = limit if padding == "max_length" else max(lengths)
        is_padded = padding not in (False, "do_not_pad")
        left = self.tokenizer.padding_side == "left"
        columns = {}
        for name, filler in fillers.items():
            columns[name] = [row.get(name, [filler] * length) for row, length in zip(rows, lengths)]
            if is_padded:
                columns[name] = [_pad(values, filler, longest, left) for values in columns[name]]
        return columns

    def _kept_tokens(
        self,
        dialogue: DialogueText,
        offsets: list[tuple[int, int]],
        context_mask: list[int],
        special: list[int],
        limit: int,
        index: int,
    ) -> list[int]:
        """Returns the indices of the tokens to keep: the last ones of the context, the first ones of the text."""
        context = [place for place, is_context in enumerate(context_mask) if is_context]
        room = max(limit - (len(special) - len(context)), 0)
        cut = set(context[: max(len(context) - min(self.context_tokens, room), 0)])
        excess = len(special) - len(cut) - limit
        if excess > 0:
            # A prompt after the text is always kept.
            own = [
                place
                for place, (begin, _) in enumerate(offsets)
                if not special[place] and not context_mask[place] and begin < dialogue.end
            ]
            from_left = getattr(self.tokenizer, "truncation_side", "right") == "left"
            cut |= set(own[:excess] if from_left else own[-excess:])
            logger.warning(
                f"text[{index}]: truncated by {excess} of {len(special) - len(context)} tokens; the limit is {limit}."
            )
        return [place for place in range(len(special)) if place not in cut]


def given(value: Any, name: str) -> Any:
    """
    Returns a value, or `None` if it marks a missing one: NaN, pandas' `NA`, a text without visible characters. Logs a
    warning unless it is `None` or an empty string.

    Args:
        value: A part of an item.
        name (`str`): Name of that part, for the warning.
    """
    if isinstance(value, str):
        is_missing = not any(unicodedata.category(character)[0] not in "CZ" for character in value)
    elif isinstance(value, Real):
        is_missing = math.isnan(value)
    else:
        is_missing = value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas
    if is_missing and value is not None and not (isinstance(value, str) and not value):
        logger.warning(f"{name}: {value!r} counts as missing.")
    return None if is_missing else value


def _pad(values: list, filler: Any, length: int, left: bool) -> list:
    padding = [filler] * (length - len(values))
    return padding + values if left else values + padding


def _pad_segments(segment_times: list[Sequence[tuple[float, float]]], starts: np.ndarray) -> np.ndarray:
    """Pads segments to `(batch, segments, 2)`, relative to the first frame; -1 before it and for padding."""
    padded = np.full((len(segment_times), max(map(len, segment_times)), 2), -1.0, np.float32)
    for row, segments, start in zip(padded, segment_times, starts):
        if segments:
            shifted = np.asarray(segments, np.float32) - start
            row[: len(segments)] = np.where(shifted[:, 1:] > 0, np.maximum(shifted, 0), -1.0)
    return padded


@contextmanager
def prefixed(place: str) -> Iterator[None]:
    """Prefixes the message of a `ValueError` raised inside with the place in the batch."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
