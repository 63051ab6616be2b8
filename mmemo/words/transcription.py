"""
Words from a recording: an ASR pipeline of `transformers`, faster-whisper, or any function finds out what is said when.

Deliberate choices:
- Of what a person wrote, bad times are refused; of what a model heard, they are straightened.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from mmemo.audio.loading import SILENCE_PEAK, load_audio
from mmemo.words.times import WordTimes, read_word_times


TRANSCRIBER_FORMS = (
    'pipeline("automatic-speech-recognition", model=...) of transformers, a faster_whisper.WhisperModel, or a '
    "function of (samples, sampling_rate) that returns words and their times"
)
FASTER_WHISPER_RATE = 16_000  # Hz
# CTC encoders attend to all that they are given, so hours go to them in pieces.
CTC_CHUNK_SECONDS = 30


def transcribe(
    transcriber: Callable[[np.ndarray, int], WordTimes] | Any,
    samples: np.ndarray,
    sampling_rate: int,
) -> list[tuple[str, float, float]]:
    """
    Finds out what is said in a recording of any length, and when.

    Args:
        transcriber (`AutomaticSpeechRecognitionPipeline`, `faster_whisper.WhisperModel` or `Callable`):
            An ASR pipeline over Whisper or a CTC model; a model of faster-whisper; or a function of samples and
            sampling rate that returns [`WordTimes`]. Whisper hears long recordings in its own manner, one stretch of
            30 s after the other, unless its pipeline was built with `chunk_length_s`; CTC models hear chunks of 30 s.
        samples (`np.ndarray` of shape `(samples,)`): float32, mono.
        sampling_rate (`int`): Rate of the samples in Hz. Models get the rate that they need.

    Returns:
        `list[tuple[str, float, float]]`: words with start and end in seconds; empty if there are none. Where a model
        goes back in time or beyond the end, its times are moved to where they may be; the words keep their order.

    Raises:
        ValueError: if the transcriber is of no accepted form, a model gives no word times, or a function's are bad.
    """
    # Told by name: whoever passes one has imported its library, and this module need not.
    libraries = {kind.__module__.partition(".")[0] for kind in type(transcriber).__mro__}
    names = {kind.__name__ for kind in type(transcriber).__mro__}
    if "transformers" in libraries and "AutomaticSpeechRecognitionPipeline" in names:
        listen = _listen_with_pipeline
    elif "faster_whisper" in libraries:
        listen = _listen_with_faster_whisper
    elif callable(transcriber) and "transformers" not in libraries:
        return read_word_times(transcriber(samples, sampling_rate))
    else:
        raise ValueError(f"{type(transcriber).__name__} is not a transcriber; pass {TRANSCRIBER_FORMS}.")
    # Whisper makes words up where there is silence.
    if np.abs(samples).max(initial=0.0) < SILENCE_PEAK:
        return []
    chunks = listen(transcriber, samples, sampling_rate)
    return read_word_times(_straighten(chunks, len(samples) / sampling_rate))


def _listen_with_pipeline(transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[dict[str, Any]]:
    rate = transcriber.feature_extractor.sampling_rate
    samples = load_audio(samples, sampling_rate, rate)
    is_long_ctc = transcriber.type in ("ctc", "ctc_with_lm") and len(samples) > CTC_CHUNK_SECONDS * rate
    options = {"chunk_length_s": CTC_CHUNK_SECONDS} if is_long_ctc else {}
    return transcriber({"raw": samples, "sampling_rate": rate}, return_timestamps="word", **options)["chunks"]


def _listen_with_faster_whisper(transcriber: Any, samples: np.ndarray, sampling_rate: int) -> list[dict[str, Any]]:
    samples = load_audio(samples, sampling_rate, FASTER_WHISPER_RATE)
    segments, _ = transcriber.transcribe(samples, word_timestamps=True)
    words = (word for segment in segments for word in segment.words or ())
    return [{"text": word.word, "timestamp": (word.start, word.end)} for word in words]


def _straighten(chunks: list[dict[str, Any]], duration: float) -> list[dict[str, Any]]:
    """Moves times of chunks so that they never go back and lie within the audio, and drops chunks without text."""
    straight, earliest = [], 0.0
    for chunk in chunks:
        if not chunk["text"].strip():
            continue
        start, end = chunk["timestamp"]
        start = earliest = min(max(start, earliest), duration)
        end = None if end is None else min(max(end, start), duration)
        straight.append({"text": chunk["text"], "timestamp": (start, end)})
    return straight
