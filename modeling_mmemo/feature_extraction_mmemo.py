"""
Feature extractor of MMEmo.

Deliberate choices:
- Features are computed on the clip's true length and padded afterwards, so they do not depend on the batch.
- Window, filterbank and cosines come from librosa; [`MelAnalysis`] applies them.
"""

import math
from numbers import Real
from typing import Any

import librosa
import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType

from mmemo.audio.loading import AUDIO_INPUT_FORMS, AudioInput, is_audio_object, load_audio
from mmemo.audio.mel import FEATURES, MelAnalysis, pad


PRESETS = {
    "whisper": {"n_mels": 80, "n_fft": 400, "hop_length": 160},
    "librosa": {"n_mels": 128, "n_fft": 2048, "hop_length": 512},
}
# `trim_db` compares the RMS of windows, one hop apart, and keeps a margin on either side of the sound.
TRIM_WINDOW_SECONDS, TRIM_HOP_SECONDS, TRIM_MARGIN_SECONDS = 0.032, 0.008, 0.05


class MMEmoFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Constructs an MMEmo feature extractor: mel spectrograms, log-mel spectrograms and MFCCs, each clip at its true
    length.

    The features of a clip, alone or in a batch with any others, equal those of the preset's reference within 1e-4 for
    `log_mel`, and within 1e-6 of the clip's largest magnitude for `mel` and `mfcc` (float32 itself has 1e-7):

    - `"whisper"`: `log_mel` is [`WhisperFeatureExtractor`]'s for this clip alone with `padding="do_not_pad"`: ends
      reflected, last frame dropped, log10, floor 8 below the clip's maximum, `(x + 4) / 4`. That is `samples //
      hop_length` frames; a clip shorter than one hop keeps its only frame. `mel` is the power before the logarithm,
      `mfcc` the DCT of that power in dB.
    - `"librosa"`: `mel` is `librosa.feature.melspectrogram`, `log_mel` is `librosa.power_to_db` of it (re 1.0, floor
      80 dB below the clip's maximum), `mfcc` is `librosa.feature.mfcc`; `1 + samples // hop_length` frames.

    This feature extractor inherits from [`~feature_extraction_sequence_utils.SequenceFeatureExtractor`]. Its
    `feature_size` follows from `features`, and must equal the `num_mel_bins` of the encoder.

    Args:
        preset (`str`, *optional*, defaults to `"whisper"`):
            `"whisper"` or `"librosa"`.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the features in Hz. Clips with other rates are resampled.
        features (`Sequence[str]`, *optional*, defaults to `("log_mel",)`):
            Which of `"mel"`, `"log_mel"` and `"mfcc"` to stack along the channel axis, in this order.
        n_mels (`int`, *optional*):
            Number of mel bands; by default 80 for `"whisper"`, 128 for `"librosa"`.
        n_mfcc (`int`, *optional*, defaults to 13):
            Number of cepstral coefficients.
        n_fft (`int`, *optional*):
            Length of the Hann window in samples, an even number; by default 400 for `"whisper"`, 2048 for
            `"librosa"`.
        hop_length (`int`, *optional*):
            Number of samples from one frame to the next; by default 160 for `"whisper"`, 512 for `"librosa"`.
        loudness_dbfs (`float`, *optional*):
            RMS level in dB re full scale to which every clip is scaled before truncation and analysis. `None` does not
            scale, which equality with the reference implementations requires.
        trim_db (`float`, *optional*):
            Trims the beginning and end of a clip where it is more than this many dB below its loudest 32 ms, and keeps
            a margin of 50 ms. `None` does not trim.
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of padding frames.

    Raises:
        ValueError: If an argument is unknown, invalid, or contradicts another.

    Source: `librosa.feature`; Whisper's `log_mel_spectrogram` (https://github.com/openai/whisper).
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        preset: str = "whisper",
        sampling_rate: int = 16_000,
        features: tuple[str, ...] = ("log_mel",),
        n_mels: int | None = None,
        n_mfcc: int = 13,
        n_fft: int | None = None,
        hop_length: int | None = None,
        loudness_dbfs: float | None = None,
        trim_db: float | None = None,
        padding_value: float = 0.0,
        **kwargs,
    ):
        if preset not in PRESETS:
            raise ValueError(f"preset={preset!r} is unknown; choose one of {list(PRESETS)}.")
        names = set(features)
        if isinstance(features, str) or not names or names - set(FEATURES) or len(names) < len(features):
            raise ValueError(f"features={features!r} must be a list of distinct names from {FEATURES}.")
        if loudness_dbfs is not None and not -math.inf < loudness_dbfs <= 0:
            raise ValueError(f"loudness_dbfs={loudness_dbfs} must be a finite level of at most 0 dBFS, or None.")
        if trim_db is not None and not 0 < trim_db < math.inf:
            raise ValueError(f"trim_db={trim_db} must be a positive number of dB, such as 35, or None.")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError(f"padding_side={kwargs['padding_side']!r} is not supported; it is always 'right'.")
        given = {"n_mels": n_mels, "n_fft": n_fft, "hop_length": hop_length}
        sizes = PRESETS[preset] | {name: value for name, value in given.items() if value is not None}
        for name, value in {**sizes, "n_mfcc": n_mfcc, "sampling_rate": sampling_rate}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a positive integer.")
        self.preset = preset
        self.features = tuple(features)
        self.n_mels = sizes["n_mels"]
        self.n_mfcc = n_mfcc
        self.n_fft = sizes["n_fft"]
        self.hop_length = sizes["hop_length"]
        self.loudness_dbfs = loudness_dbfs
        self.trim_db = trim_db
        if self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even, so that frames can be centred.")
        if "mfcc" in self.features and self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc={self.n_mfcc} must not exceed n_mels={self.n_mels}.")

        channels = {"mel": self.n_mels, "log_mel": self.n_mels, "mfcc": self.n_mfcc}
        feature_size = sum(channels[feature] for feature in self.features)
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.analysis = MelAnalysis(
            self.preset,
            self.features,
            self.hop_length,
            self.loudness_dbfs,
            window=librosa.filters.get_window("hann", self.n_fft, fftbins=True),
            mel_filters=librosa.filters.mel(sr=sampling_rate, n_fft=self.n_fft, n_mels=self.n_mels),
            cosines=librosa.feature.mfcc(S=np.eye(self.n_mels), n_mfcc=min(n_mfcc, self.n_mels)),
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration to save: the arguments, without values derived from them."""
        derived = {"feature_size", "analysis"}
        return {name: value for name, value in super().to_dict().items() if name not in derived}

    @property
    def frame_seconds(self) -> float:
        """Time from one frame to the next, in seconds. Frame `t` is centred at `t * frame_seconds`."""
        return self.hop_length / self.sampling_rate

    def num_frames(self, num_samples: int) -> int:
        """Returns the number of frames of a clip of `num_samples` samples at `sampling_rate`."""
        return self.analysis.num_frames(num_samples)

    def __call__(
        self,
        raw_speech: AudioInput | list[AudioInput],
        sampling_rate: float | None = None,
        channel: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Extracts the features of one clip or of a batch.

        Args:
            raw_speech (`AudioInput` or `list[AudioInput]`):
                One clip or a list of clips, in any of the forms that [`AudioInput`] lists. A list of numbers is one
                clip; a two-dimensional array is one clip of shape `(channels, samples)`.
            sampling_rate (`float`, *optional*), channel (`int`, *optional*):
                Sampling rate of bare samples in Hz, and the channel to load; see [`load_audio`].
            padding (`bool`, `str` or [`~utils.PaddingStrategy`], *optional*, defaults to `True`):
                `True` or `"longest"` pads to the longest clip, `"max_length"` to the frames of `max_length` samples.
                `False` or `"do_not_pad"` does not pad: the result then has a list with one array per clip.
            max_length (`int`, *optional*):
                Length for `padding="max_length"` and for truncation, in samples at the extractor's `sampling_rate`.
            pad_to_multiple_of (`int`, *optional*):
                Rounds the padded number of frames up to a multiple of this.
            truncation (`bool`, *optional*, defaults to `False`):
                Whether to truncate clips to `max_length` samples.
            return_attention_mask (`bool`, *optional*):
                Whether to return the mask; defaults to the extractor's `return_attention_mask` (`True`).
            return_tensors (`str` or [`~utils.TensorType`], *optional*):
                `"pt"` for torch tensors; `"np"`, the default, for NumPy arrays.

        Returns:
            [`BatchFeature`] with
            - **input_features** -- float32 of shape `(batch, feature_size, frames)`; padding is `padding_value`.
            - **attention_mask** -- int32 of shape `(batch, frames)`: 1 for real frames, 0 for padding.
            - **start_seconds** -- float32 of shape `(batch,)`, only with `trim_db`: start of the frames in the clip.

        Raises:
            ValueError: If [`load_audio`] cannot load a clip, the batch is empty, or lengths contradict each other.
        """
        is_batch = isinstance(raw_speech, (list, tuple)) and not is_audio_object(raw_speech)
        if isinstance(raw_speech, (list, tuple)) and raw_speech and isinstance(raw_speech[0], Real):
            is_batch = False
        inputs: Any = raw_speech if is_batch else [raw_speech]
        clips = [load_audio(clip, sampling_rate, self.sampling_rate, channel) for clip in inputs]
        if not clips:
            raise ValueError(f"The batch is empty; pass at least one clip: {AUDIO_INPUT_FORMS}.")
        return self.extract(
            clips, padding, max_length, pad_to_multiple_of, truncation, return_attention_mask, return_tensors
        )

    def extract(
        self,
        clips: list[np.ndarray],
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Extracts the features of clips that [`load_audio`] returned at `sampling_rate`.

        Args:
            clips (`list` of `np.ndarray` of shape `(samples,)`): At least one clip, float32.
            padding, max_length, pad_to_multiple_of, truncation, return_attention_mask, return_tensors:
                As in [`~MMEmoFeatureExtractor.__call__`].

        Raises:
            ValueError: If lengths are invalid or contradict each other.
        """
        strategy = self._get_padding_strategies(padding, max_length)
        if truncation and max_length is None:
            raise ValueError("truncation=True needs max_length, in samples.")
        for name, value in {"max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        trimmed = [self._trim(clip) for clip in clips]
        clips = [self.analysis.level(clip) for clip, _ in trimmed]
        if truncation:
            clips = [clip[:max_length] for clip in clips]

        features = self.analysis(clips)
        masks = [np.ones(feature.shape[1], np.int32) for feature in features]
        batch: dict[str, Any] = {"input_features": features, "attention_mask": masks}
        if strategy != PaddingStrategy.DO_NOT_PAD:
            longest = max(len(clip) for clip in clips)
            if strategy == PaddingStrategy.MAX_LENGTH and max_length is not None:
                if longest > max_length:
                    raise ValueError(
                        f"max_length={max_length} is exceeded by a clip of {longest}; set truncation=True."
                    )
                longest = max_length
            frames = self.num_frames(longest)
            frames += -frames % (pad_to_multiple_of or 1)
            batch = {
                "input_features": pad(batch["input_features"], frames, self.padding_value),
                "attention_mask": pad(batch["attention_mask"], frames, 0),
            }
        if not (self.return_attention_mask if return_attention_mask is None else return_attention_mask):
            del batch["attention_mask"]
        if self.trim_db is not None:
            batch["start_seconds"] = np.array([start for _, start in trimmed], np.float32)
        return BatchFeature(batch, tensor_type=return_tensors)

    def _trim(self, samples: np.ndarray) -> tuple[np.ndarray, float]:
        """Trims a clip by `trim_db`; returns its samples and their start in seconds."""
        if self.trim_db is None:
            return samples, 0.0
        window, hop, margin = (
            round(seconds * self.sampling_rate)
            for seconds in (TRIM_WINDOW_SECONDS, TRIM_HOP_SECONDS, TRIM_MARGIN_SECONDS)
        )
        _, (start, end) = librosa.effects.trim(samples, top_db=self.trim_db, frame_length=window, hop_length=hop)
        start = max(start - margin, 0)
        return samples[start : end + margin], start / self.sampling_rate
