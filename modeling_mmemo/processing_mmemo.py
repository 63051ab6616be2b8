"""
Processor of MMEmo: converts audio, text, word timestamps and video to the inputs of a model.

Deliberate choices:
- Preparing and checking items is [`ItemProcessing`]; this module adds the parts, how they are saved, and tensors.
"""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
    WhisperFeatureExtractor,
)

from mmemo.audio.loading import AudioInput, is_audio_object
from mmemo.items import MAX_SPEECH_SECONDS, SPEECH_PADDING_SECONDS, ItemProcessing
from mmemo.video.frames import VideoInput
from mmemo.words.dialogue import DialogueTurn
from mmemo.words.times import WordTimes, is_timed_entry

from .feature_extraction_mmemo import MMEmoFeatureExtractor


# Keyword arguments that `text_kwargs=` and `common_kwargs=` may hold.
TEXT_KWARGS = ("padding", "truncation", "max_length")
COMMON_KWARGS = ("return_tensors",)
_PLURALS = {
    "audio": "audios",
    "text": "texts",
    "word_times": "lists of word times",
    "context": "contexts",
    "speaker": "speakers",
    "video": "videos",
    "segment_times": "lists of segment times",
}


class MMEmoProcessor(ItemProcessing, ProcessorMixin):
    r"""
    Constructs an MMEmo processor from any feature extractor for audio and any tokenizer, and the settings of the
    video; a modality that the model does not encode is left out.

    Args:
        feature_extractor (`SequenceFeatureExtractor`, *optional*):
            [`MMEmoFeatureExtractor`] or that of the audio encoder: Whisper's, wav2vec2's, AST's, ...
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            The text encoder's tokenizer. Without a padding token (GPT-2, LLaMA), its end-of-sequence token is used.
        context_turns (`int`, *optional*, defaults to 0):
            Maximum number of previous dialogue turns that the model encodes before a text, the most recent ones. With
            0, `context` and `speaker` raise an error.
        context_tokens (`int`, *optional*, defaults to 256):
            Maximum number of their tokens, the most recent ones. Context and text share the tokenizer's
            `model_max_length`; the text takes precedence.
        prompt (`str`, *optional*, defaults to `""`):
            Appended to every text, for a language model to continue: `"\nThe emotion is"`.
        speech_padding_s (`float`, *optional*, defaults to 0.1):
            Clips are cut to their speech, with this many seconds before and after it, at most 0.1 s of them sound of
            the clip and the rest zeros; pauses of more than 1 s are shortened. Clips without speech are kept whole;
            for the pipeline they count as missing in an item with a text. `None` does not detect speech.
        max_speech_s (`float`, *optional*, defaults to 10.0):
            Pipelines predict clips with more speech than this, in seconds and with its padding, in windows: models
            that were trained on clips of a few seconds are inaccurate on long ones.
        frames_per_second (`float`, *optional*):
            Frames of a video per second, in each of which a face is followed; 5 is usual. `None` takes no video.
        crop_size (`int`, *optional*), image_mean, image_std (`list[float]`, *optional*):
            For an image encoder: side of the face's pictures in pixels, and mean and standard deviation of the
            encoder's channels, of pixels in [0, 1]. By default the model encodes blendshapes.

    Raises:
        ValueError: If nothing to process is given; if settings of the video contradict each other; if the tokenizer
            has neither a padding nor an end-of-sequence token; if dialogue context or a prompt is used with a slow
            tokenizer; or if a number is negative. On a call, if speech detection is not installed.

    Example:

    ```python
    >>> from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
    >>> from transformers import AutoTokenizer

    >>> processor = MMEmoProcessor(MMEmoFeatureExtractor(), AutoTokenizer.from_pretrained("bert-base-uncased"))
    >>> inputs = processor(audio=["call.wav", None], text=[None, "I am so happy!"], return_tensors="pt")
    ```
    """

    def __init__(
        self,
        feature_extractor: Any = None,
        tokenizer: Any = None,
        context_turns: int = 0,
        context_tokens: int = 256,
        prompt: str = "",
        speech_padding_s: float | None = SPEECH_PADDING_SECONDS,
        max_speech_s: float = MAX_SPEECH_SECONDS,
        frames_per_second: float | None = None,
        crop_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ):
        parts = {"feature_extractor": feature_extractor, "tokenizer": tokenizer}
        present = {name: part for name, part in parts.items() if part is not None}
        if not present and frames_per_second is None:
            raise ValueError(
                "MMEmoProcessor needs a feature_extractor, a tokenizer or, for a model of video alone, "
                "frames_per_second; got none of them."
            )
        if tokenizer is not None and tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"{type(tokenizer).__name__} has neither a pad_token nor an eos_token, so texts cannot be padded; "
                    "set tokenizer.pad_token."
                )
            tokenizer.pad_token = tokenizer.eos_token
        for name, number in (("context_turns", context_turns), ("context_tokens", context_tokens)):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name}={number!r} must be an integer of at least 0.")
        if speech_padding_s is not None and not 0 <= speech_padding_s < math.inf:
            raise ValueError(
                f"speech_padding_s={speech_padding_s!r} must be a number of seconds of at least 0, or None."
            )
        for name, setting in (("context_turns", context_turns), ("prompt", prompt)):
            if setting and (tokenizer is None or not tokenizer.is_fast):
                raise ValueError(
                    f"{name}={setting!r} needs a fast tokenizer, which returns character offsets; got "
                    f"{type(tokenizer).__name__}."
                )
        self.context_turns, self.context_tokens, self.prompt = context_turns, context_tokens, prompt
        if not 0 < max_speech_s < math.inf:
            raise ValueError(f"max_speech_s={max_speech_s!r} must be a positive number of seconds.")
        self.speech_padding_s, self.max_speech_s = speech_padding_s, max_speech_s
        _check_video_settings(frames_per_second, crop_size, image_mean, image_std)
        self.frames_per_second, self.crop_size = frames_per_second, crop_size
        self.image_mean, self.image_std = image_mean, image_std
        # ProcessorMixin infers its parts from this signature and can neither check nor save a part that is None.
        self.get_attributes: Callable[[], list[str]] = partial(list, present)
        super().__init__(**present)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"parts": self.get_attributes()}

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs):
        loaders = {"feature_extractor": AutoFeatureExtractor, "tokenizer": AutoTokenizer}
        present = (processor_dict or {}).get("parts", list(loaders))
        return [
            loader.from_pretrained(pretrained_model_name_or_path, **kwargs) if name in present else None
            for name, loader in loaders.items()
        ]

    @property
    def model_input_names(self) -> list[str]:
        audio = [] if self.feature_extractor is None else [self._audio_input_name, "audio_attention_mask"]
        text = [] if self.tokenizer is None else ["input_ids", "attention_mask", "token_times"]
        face = "video_features" if self.crop_size is None else "pixel_values"
        video = [] if self.frames_per_second is None else [face, "video_attention_mask", "video_times"]
        return audio + text + (["context_mask"] if self.context_turns else []) + video

    @property
    def audio_padding(self) -> bool | str:  # type: ignore[override]
        """The feature extractor's `padding`: to the longest clip; to 30 s for Whisper, whose encoder requires it."""
        return "max_length" if isinstance(self.feature_extractor, WhisperFeatureExtractor) else True

    @property
    def max_audio_samples(self) -> int | None:  # type: ignore[override]
        """Number of samples beyond which the feature extractor would truncate; `None` if it takes any length."""
        if isinstance(self.feature_extractor, WhisperFeatureExtractor):
            return self.feature_extractor.n_samples
        if isinstance(self.feature_extractor, ASTFeatureExtractor):
            # Frames of 25 ms every 10 ms, all of them within the clip.
            seconds = 0.025 + 0.010 * self.feature_extractor.max_length
            return round(seconds * self.feature_extractor.sampling_rate) - 1
        return None

    def __call__(
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
        return_tensors: str | None = None,
        context: list[DialogueTurn] | list[list[DialogueTurn] | None] | None = None,
        speaker: str | list[str | None] | None = None,
        video: VideoInput | list[VideoInput | None] | None = None,
        fps: float | None = None,
        face: int | None = None,
        text_kwargs: dict[str, Any] | None = None,
        common_kwargs: dict[str, Any] | None = None,
    ) -> BatchFeature:
        """
        Converts one item or a batch to the inputs of a model.

        Args:
            audio (`AudioInput` or `list[AudioInput | None]`, *optional*):
                One clip or a list of clips in any of the forms that [`AudioInput`] lists; `None` if missing. A list of
                numbers is one clip; a two-dimensional array is one clip of shape `(channels, samples)`.
            text (`str`, `WordTimes` or `list[str | WordTimes | None]`, *optional*):
                One text or a list of texts. A blank text counts as `None`: missing. Instead of a text, its words with
                timestamps, in any of the forms that [`WordTimes`] lists except a path as a `str`, which is a text.
            word_times (`WordTimes` or `list[WordTimes | None]`, *optional*):
                Timestamps of the words, in any of the forms that [`WordTimes`] lists. The words are matched with the
                text in order, ignoring case; if the text is missing, it is the words joined by spaces. An empty list
                counts as `None`.
            segment_times (`list[list[tuple[float, float]]]`, *optional*):
                For each item of a batch the segments to predict, start and end in seconds.
            sampling_rate (`float`, *optional*), channel (`int`, *optional*):
                Sampling rate of bare samples in Hz, and the audio channel; see [`load_audio`].
            padding (`bool` or `str`, *optional*, defaults to `True`), truncation (`bool`, *optional*, defaults to
            `True`), max_length (`int`, *optional*):
                For the text, as in a tokenizer; `max_length` defaults to the tokenizer's `model_max_length`. Audio is
                always padded: to the longest clip, or to the fixed length of Whisper's and AST's feature extractors.
            audio_kwargs (`dict`, *optional*):
                Additional arguments of the feature extractor.
            return_tensors (`str`, *optional*):
                `"pt"` for torch tensors, `"np"` for NumPy arrays.
            context (`list[DialogueTurn]` or `list[list[DialogueTurn] | None]`, *optional*):
                The previous turns of a dialogue, oldest first, in any of the forms that [`DialogueTurn`] lists; or a
                list of them for each item of a batch. The model encodes the last `context_turns`.
            speaker (`str` or `list[str | None]`, *optional*):
                The speaker of the text, by the name used in the context.
            video (`VideoInput` or `list[VideoInput | None]`, *optional*):
                One video or image, or a list of them, in any of the forms that [`VideoInput`] lists; `None` if
                missing. A list of images is one video if `fps` is given. The sound of a video is not taken as audio.
            fps (`float`, *optional*):
                Frames per second of bare frames.
            face (`int`, *optional*):
                The face in each video, by rank; see [`read_face`].
            text_kwargs (`dict`, *optional*), common_kwargs (`dict`, *optional*):
                As in processors of `transformers`: `padding`, `truncation` and `max_length` of the text, and
                `return_tensors`. They override the arguments of these names.

        Returns:
            [`BatchFeature`] with what the batch has of
            - **input_features** or **input_values** -- as the feature extractor names and shapes it.
            - **audio_attention_mask** -- int64 of shape `(batch, frames or samples)`.
            - **input_ids**, **attention_mask** -- int64 of shape `(batch, tokens)`.
            - **context_mask** -- int64 of shape `(batch, tokens)`: 1 for the tokens of the turns before. Only if the
              batch has any.
            - **token_times** -- float32 of shape `(batch, tokens, 2)`: start and end, in seconds from the first frame,
              of the word that a token belongs to, -1 where unknown. Only if the batch has word times.
            - **video_features** -- float32 of shape `(batch, frames, 52)`: the blendshapes of the face; or
              **pixel_values** -- float32 of shape `(batch, frames, 3, crop_size, crop_size)`: its pictures.
            - **video_attention_mask** -- int64 of shape `(batch, frames)`: 1 for frames with a face.
            - **video_times** -- float32 of shape `(batch, frames, 2)`: start and end of each frame, in seconds from
              the first frame of the audio; -1 where unknown.
            - **segment_times** -- float32 of shape `(batch, segments, 2)`: `segment_times`, in seconds from the first
              frame, -1 for padding.

        Raises:
            ValueError: If an item is invalid, with its position in the batch (see [`~ItemProcessing.prepare`]); if the
                batch is empty or its parts differ in size; if `text_kwargs` or `common_kwargs` has an unknown key.
        """
        options: dict[str, Any] = {"padding": padding, "truncation": truncation, "max_length": max_length}
        options |= _known("text_kwargs", text_kwargs, TEXT_KWARGS)
        common = {"return_tensors": return_tensors} | _known("common_kwargs", common_kwargs, COMMON_KWARGS)
        columns = {
            "audio": _as_batch(audio, one=is_audio_object(audio) or isinstance(_first(audio), Real)),
            "text": _as_batch(text, one=is_timed_entry(_first(text))),
            "word_times": _as_batch(word_times or None, one=is_timed_entry(_first(word_times))),
            "context": _as_batch(context or None, one=isinstance(_first(context), (str, tuple, dict))),
            "speaker": _as_batch(speaker),
            "video": _as_batch(video, one=fps is not None or isinstance(video, np.ndarray)),
        }
        if not any(columns.values()):
            raise ValueError("There is nothing to process; pass audio, text or video.")
        columns["segment_times"] = segment_times
        sizes = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(sizes.values())) > 1:
            counts = " but ".join(f"{size} {_PLURALS[name]}" for name, size in sizes.items())
            raise ValueError(f"Got {counts}; they must match 1:1. Pass None where an item has none.")
        size = max(sizes.values())
        rows = zip(*(column or [None] * size for column in columns.values()))
        items = [
            self.prepare(
                **dict(zip(columns, row)),
                sampling_rate=sampling_rate,
                channel=channel,
                index=index,
                fps=fps,
                face=face,
            )
            for index, row in enumerate(rows)
        ]
        features = self.collate(items, **options, audio_kwargs=audio_kwargs)
        return BatchFeature(features, tensor_type=common["return_tensors"])

    def extract_features(self, waveforms: list[np.ndarray], **options: Any) -> Any:
        # Our own feature extractor need not load and check the samples again.
        if isinstance(self.feature_extractor, MMEmoFeatureExtractor):
            del options["sampling_rate"]
            return self.feature_extractor.extract(waveforms, **options)
        return super().extract_features(waveforms, **options)


def _check_video_settings(
    frames_per_second: float | None, crop_size: int | None, image_mean: Any, image_std: Any
) -> None:
    """Raises if a setting of the video is invalid, or only some of those of an image encoder are given."""
    if frames_per_second is not None and not 0 < frames_per_second < math.inf:
        raise ValueError(f"frames_per_second={frames_per_second!r} must be a positive number, or None without video.")
    of_images = {"crop_size": crop_size, "image_mean": image_mean, "image_std": image_std}
    missing = [name for name, value in of_images.items() if value is None]
    if missing and len(missing) < len(of_images):
        raise ValueError(f"An image encoder needs crop_size, image_mean and image_std; {missing} are missing.")
    if not missing and frames_per_second is None:
        raise ValueError("crop_size, image_mean and image_std need frames_per_second; set it, or leave them out.")


def _known(name: str, kwargs: dict[str, Any] | None, valid: tuple[str, ...]) -> dict[str, Any]:
    if unknown := sorted((kwargs or {}).keys() - set(valid)):
        raise ValueError(f"{name} has unknown keys {unknown}; valid keys are {list(valid)}.")
    return kwargs or {}


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, (list, tuple)) and batch else None


def _as_batch(value: Any, one: bool = False) -> list | None:
    """Returns a batch as a list; if it is `one` item, as a list of that item."""
    if value is None:
        return None
    return list(value) if isinstance(value, (list, tuple)) and not one else [value]
