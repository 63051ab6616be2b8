"""
Processor of MMEmo: audio, text and word times become the inputs of a model.

Deliberate choices:
- What becomes of an item is [`ItemProcessing`]; here are its parts, how they are saved, and their tensors.
"""

from collections.abc import Callable
from functools import partial
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

from mmemo.answers import Answers
from mmemo.audio.loading import AudioInput
from mmemo.items import ItemProcessing
from mmemo.words.dialogue import DialogueTurn
from mmemo.words.times import WordTimes
from mmemo.words.transcription import transcribe


class MMEmoProcessor(ItemProcessing, ProcessorMixin):
    r"""
    Constructs an MMEmo processor from any feature extractor for audio and any tokenizer; for a model of one modality,
    from one of them.

    Args:
        feature_extractor (`SequenceFeatureExtractor`, *optional*):
            [`MMEmoFeatureExtractor`] or that of the audio encoder: Whisper's, wav2vec2's, AST's, ...
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            That of the text encoder. If it has no padding token (GPT-2, LLaMA), its end-of-sequence token becomes it.
        context_turns (`int`, *optional*, defaults to 0):
            How many turns of a dialogue the model reads before a text; of a longer one the last. A model that was not
            trained with any reads none, and `context` and `speaker` are refused.
        context_tokens (`int`, *optional*, defaults to 256):
            How many of their tokens, the last, it reads at most. They and the text share the tokenizer's
            `model_max_length`, and where it is short the text goes before.
        prompt (`str`, *optional*, defaults to `""`):
            What is written behind every text, for a language model to go on from: `"\nThe emotion is"`.

    Raises:
        ValueError: if both are missing; if the tokenizer has neither a padding nor an end-of-sequence token; if it
            cannot say where its tokens stand in a text, which dialogues take; or if a number is negative.

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
    ):
        parts = {"feature_extractor": feature_extractor, "tokenizer": tokenizer}
        present = {name: part for name, part in parts.items() if part is not None}
        if not present:
            raise ValueError("MMEmoProcessor needs a feature_extractor, a tokenizer, or both; got neither.")
        if tokenizer is not None and tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError(
                    f"{type(tokenizer).__name__} has neither a pad_token nor an eos_token, so texts cannot be padded; "
                    "set tokenizer.pad_token to a token that the model may ignore."
                )
            tokenizer.pad_token = tokenizer.eos_token
        for name, number in (("context_turns", context_turns), ("context_tokens", context_tokens)):
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name}={number!r} must be an integer of at least 0.")
        for name, setting in (("context_turns", context_turns), ("prompt", prompt)):
            if setting and (tokenizer is None or not tokenizer.is_fast):
                raise ValueError(
                    f"{name}={setting!r} needs a fast tokenizer, which says where its tokens stand in a text; got "
                    f"{type(tokenizer).__name__}."
                )
        self.context_turns, self.context_tokens, self.prompt = context_turns, context_tokens, prompt
        # ProcessorMixin infers its parts from this signature and can neither check nor save one that is None.
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
        return audio + text + (["context_mask"] if self.context_turns else [])

    @property
    def audio_padding(self) -> bool | str:  # type: ignore[override]
        """The feature extractor's `padding`: the longest clip's length, but Whisper's encoder takes 30 s."""
        return "max_length" if isinstance(self.feature_extractor, WhisperFeatureExtractor) else True

    @property
    def max_audio_samples(self) -> int | None:  # type: ignore[override]
        """Length in samples beyond which the feature extractor would cut a clip; `None` if it takes any length."""
        if isinstance(self.feature_extractor, WhisperFeatureExtractor):
            return self.feature_extractor.n_samples
        if isinstance(self.feature_extractor, ASTFeatureExtractor):
            # frames of 25 ms every 10 ms, none of them reaching beyond the clip's ends
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
    ) -> BatchFeature:
        """
        Turns one item or a batch into the inputs of a model.

        Args:
            audio (`AudioInput` or `list[AudioInput | None]`, *optional*):
                One clip or a list of clips in any of the forms that [`AudioInput`] lists; `None` where there is none.
                A list of numbers is one clip; a two-dimensional array is one clip of shape `(channels, samples)`.
            text (`str`, `WordTimes` or `list[str | WordTimes | None]`, *optional*):
                One text or a list of texts. A blank text counts as `None`: missing. In place of a text, its words with
                their times, in any of the forms that [`WordTimes`] lists but a path as a `str`, which would be a text.
            word_times (`WordTimes` or `list[WordTimes | None]`, *optional*):
                When each word was spoken, in any of the forms that [`WordTimes`] lists. The words are looked up in the
                text in their order, whatever their case; if the text is missing, it is the words joined by blanks. An
                empty list counts as `None`.
            segment_times (`list[list[tuple[float, float]]]`, *optional*):
                For each item of a batch the stretches to answer for one by one, start and end in seconds.
            sampling_rate (`float`, *optional*), channel (`int`, *optional*):
                Rate of bare samples in Hz, and the channel to take; see [`load_audio`].
            padding (`bool` or `str`, *optional*, defaults to `True`), truncation (`bool`, *optional*, defaults to
            `True`), max_length (`int`, *optional*):
                For the text, as in a tokenizer; `max_length` is the tokenizer's `model_max_length` by default. Audio
                is always padded: to the longest clip, or to the length that Whisper's and AST's extractors have fixed.
            audio_kwargs (`dict`, *optional*):
                Further arguments for the feature extractor.
            return_tensors (`str`, *optional*):
                `"pt"` for torch tensors, `"np"` for NumPy arrays.
            context (`list[DialogueTurn]` or `list[list[DialogueTurn] | None]`, *optional*):
                What was said before a text, oldest first, in any of the forms that [`DialogueTurn`] lists; or for each
                item of a batch. Of a longer dialogue the model reads the last `context_turns`.
            speaker (`str` or `list[str | None]`, *optional*):
                Who says the text, as the turns of the context call them.

        Returns:
            [`BatchFeature`] with what the batch has of
            - **input_features** or **input_values** -- as the feature extractor names and shapes it.
            - **audio_attention_mask** -- int64 of shape `(batch, frames or samples)`.
            - **input_ids**, **attention_mask** -- int64 of shape `(batch, tokens)`.
            - **context_mask** -- int64 of shape `(batch, tokens)`: 1 for the tokens of the turns before. Only if the
              batch has any.
            - **token_times** -- float32 of shape `(batch, tokens, 2)`: start and end, in seconds from the first frame,
              of the word that a token belongs to, -1 where unknown. Only if the batch has word times.
            - **segment_times** -- float32 of shape `(batch, segments, 2)`: `segment_times`, in seconds from the first
              frame, -1 for padding.

        Raises:
            ValueError: naming the place in the batch, if an item is refused by [`~MMEmoProcessor.prepare`]; if the
                batch is empty or its parts differ in size.
        """
        features = self.make_inputs(
            audio,
            text,
            word_times,
            segment_times,
            sampling_rate,
            channel,
            padding,
            truncation,
            max_length,
            audio_kwargs,
            context,
            speaker,
        )
        return BatchFeature(features, tensor_type=return_tensors)

    def answers(self, config: Any) -> Answers:
        """What puts the answers of a model in words, by its configuration; see [`Answers`]."""
        towers = {"audio": config.audio_config, "text": config.text_config}
        return Answers(
            [config.id2label[index] for index in range(config.num_labels)],
            config.problem_type,
            config.conformal_quantiles,
            [modality for modality, tower in towers.items() if tower is not None],
        )

    def transcribe(self, transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[tuple[str, float, float]]:
        """What is said in a recording, and when; see [`transcribe`]."""
        return transcribe(transcriber, samples, sampling_rate)
