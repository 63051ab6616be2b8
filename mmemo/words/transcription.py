"""
Transcription: words with timestamps from an ASR pipeline of `transformers`, from faster-whisper, or from a function.

Deliberate choices:
- Invalid timestamps from users raise an error; invalid timestamps from ASR models are corrected.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mmemo.audio.loading import is_silent, load_audio
from mmemo.words.times import WordTimes, read_word_times


TRANSCRIBER_FORMS = (
    'pipeline("automatic-speech-recognition", model=...) of transformers, a faster_whisper.WhisperModel, or a '
    "function of (samples, sampling_rate) that returns words with timestamps"
)
FASTER_WHISPER_RATE = 16_000  # Hz
# CTC encoders attend to their whole input, so long recordings are chunked.
CTC_CHUNK_SECONDS = 30


def transcribe(
    transcriber: Callable[[np.ndarray, int], WordTimes] | Any,
    samples: np.ndarray,
    sampling_rate: int,
) -> list[tuple[str, float, float]]:
    """
    Transcribes a recording of any length to words with timestamps.

    Args:
        transcriber (`AutomaticSpeechRecognitionPipeline`, `faster_whisper.WhisperModel` or `Callable`):
            An ASR pipeline with Whisper or a CTC model; a model of faster-whisper; or a function of samples and
            sampling rate that returns [`WordTimes`]. Whisper transcribes long recordings sequentially, 30 s at a time,
            unless its pipeline was built with `chunk_length_s`; CTC models get chunks of 30 s.
        samples (`np.ndarray` of shape `(samples,)`): float32, mono.
        sampling_rate (`int`): Sampling rate of the samples in Hz. They are resampled to the rate of the model.

    Returns:
        `list[tuple[str, float, float]]`: words with start and end in seconds; empty if there are none. Timestamps of
        models that decrease or exceed the audio are clipped, and the words keep their order; those of a function are
        validated and clipped by [`read_word_times`].

    Raises:
        ValueError: If the transcriber has no accepted form, a model returns no word timestamps, or a function returns
            invalid ones.
    """
    # Recognized by name, so that this module does not import their libraries.
    libraries = {kind.__module__.partition(".")[0] for kind in type(transcriber).__mro__}
    names = {kind.__name__ for kind in type(transcriber).__mro__}
    if "transformers" in libraries and "AutomaticSpeechRecognitionPipeline" in names:
        transcribe_chunks = _transcribe_with_pipeline
    elif "faster_whisper" in libraries:
        transcribe_chunks = _transcribe_with_faster_whisper
    elif callable(transcriber) and "transformers" not in libraries:
        return read_word_times(transcriber(samples, sampling_rate), len(samples) / sampling_rate)
    else:
        raise ValueError(f"{type(transcriber).__name__} is not a transcriber; pass {TRANSCRIBER_FORMS}.")
    # Whisper hallucinates words in silence.
    if is_silent(samples):
        return []
    chunks = transcribe_chunks(transcriber, samples, sampling_rate)
    return read_word_times(_correct_times(chunks, len(samples) / sampling_rate))


def _transcribe_with_pipeline(transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[dict[str, Any]]:
    rate = transcriber.feature_extractor.sampling_rate
    samples = load_audio(samples, sampling_rate, rate)
    is_long_ctc = transcriber.type in ("ctc", "ctc_with_lm") and len(samples) > CTC_CHUNK_SECONDS * rate
    options = {"chunk_length_s": CTC_CHUNK_SECONDS} if is_long_ctc else {}
    return transcriber({"raw": samples, "sampling_rate": rate}, return_timestamps="word", **options)["chunks"]


def _transcribe_with_faster_whisper(transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[dict[str, Any]]:
    samples = load_audio(samples, sampling_rate, FASTER_WHISPER_RATE)
    segments, _ = transcriber.transcribe(samples, word_timestamps=True)
    words = (word for segment in segments for word in segment.words or ())
    return [{"text": word.word, "timestamp": (word.start, word.end)} for word in words]


def _correct_times(chunks: list[dict[str, Any]], duration: float) -> list[dict[str, Any]]:
    """Makes the times of chunks increase and end within the audio, and drops chunks without text."""
    corrected, earliest = [], 0.0
    for chunk in chunks:
        if not chunk["text"].strip():
            continue
        start, end = chunk["timestamp"]
        start = earliest = min(max(start, earliest), duration)
        end = None if end is None else min(max(end, start), duration)
        corrected.append({"text": chunk["text"], "timestamp": (start, end)})
    return corrected
