"""
Cutting a clip to its speech, so that the silence or noise around it does not change a prediction.

Deliberate choices:
- Every clip gets the same frame around its speech: up to `MARGIN_SECONDS` of its own sound for soft onsets, and zeros
  up to the requested padding. A clip that begins with speech and one with ten seconds of silence before it then give
  the same input.
- The detector's frames are aligned to the loudest sample, and the first onset is detected again after a second of
  context with a reset state: the result hardly depends on the length or level of what precedes the speech.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mmemo.audio.loading import resample
from mmemo.audio.voice_activity import FRAME_SAMPLES, SAMPLING_RATE, SPEECH_PROBABILITY, VoiceActivityDetector


# Less speech than this in a clip counts as none: a click or a breath.
MIN_SPEECH_SECONDS = 0.1
# Sound that is kept around a stretch of speech: the detector is late at soft onsets.
MARGIN_SECONDS = 0.1
# Longer pauses between two stretches of speech are cut to this length.
MAX_PAUSE_SECONDS = 1.0
# Frames of context before the first onset, about a second, and frames after it in which it is detected again.
CONTEXT_FRAMES, ONSET_FRAMES = 31, 20
# Frames of zeros after a clip: the detector is late at the end of speech.
END_FRAMES = 12


@dataclass(frozen=True, eq=False)
class SpeechCut:
    """
    The speech of a clip.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): The speech, float32, with padding around it.
        clip_seconds, cut_seconds (`np.ndarray` of shape `(2 * pieces,)`):
            Starts and ends of the pieces, in seconds of the clip and of `samples`.
    """

    samples: np.ndarray
    clip_seconds: np.ndarray
    cut_seconds: np.ndarray

    def to_cut(self, seconds: Any) -> Any:
        """
        Converts times in the clip to times in `samples`; a time in a cut pause to the end of a piece.

        Args:
            seconds (`float` or `np.ndarray`): One or several; the result has the same type.
        """
        times = np.interp(seconds, self.clip_seconds, self.cut_seconds)
        return times.astype(seconds.dtype) if isinstance(seconds, np.ndarray) else float(times)


def cut_to_speech(samples: np.ndarray, sampling_rate: int, pad_seconds: float) -> SpeechCut | None:
    """
    Cuts a clip to its speech; pauses of up to `MAX_PAUSE_SECONDS` are kept.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): The clip, float32, mono.
        sampling_rate (`int`): Sampling rate of the clip in Hz.
        pad_seconds (`float`):
            Seconds before and after the speech in the result: its own sound for the `MARGIN_SECONDS` next to the
            speech, zeros for the rest.

    Returns:
        [`SpeechCut`] or `None`: `None` if the clip contains less than `MIN_SPEECH_SECONDS` of speech.
    """
    stretches = find_speech(resample(samples, sampling_rate, SAMPLING_RATE))
    if not stretches:
        return None
    scale = sampling_rate / SAMPLING_RATE
    borders = np.rint(np.array(stretches) * scale).astype(int)
    margin, padding, half_pause = (
        round(seconds * sampling_rate) for seconds in (MARGIN_SECONDS, pad_seconds, MAX_PAUSE_SECONDS / 2)
    )
    margin = min(margin, padding)
    first, last = int(borders[0, 0]), int(borders[-1, 1])
    pieces = borders + np.array([-half_pause, half_pause])
    pieces[0, 0], pieces[-1, 1] = max(first - margin, 0), last + margin
    samples = np.pad(samples, (0, max(last + margin - len(samples), 0)))
    lead, tail = padding - (first - pieces[0, 0]), padding - margin
    lengths = pieces[:, 1] - pieces[:, 0]
    starts = lead + np.cumsum(lengths) - lengths
    zeros = np.zeros(max(lead, tail), np.float32)
    cut = np.concatenate([zeros[:lead], *(samples[begin:end] for begin, end in pieces), zeros[:tail]])
    return SpeechCut(
        cut, pieces.ravel() / sampling_rate, np.stack([starts, starts + lengths], axis=1).ravel() / sampling_rate
    )


def find_speech(samples: np.ndarray) -> list[tuple[int, int]]:
    """
    Finds the stretches of speech in a clip.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): The clip, float32, mono, 16 kHz.

    Returns:
        `list[tuple[int, int]]`: Start and end of each stretch, in samples, at least `MAX_PAUSE_SECONDS` apart; empty
        if there is less than `MIN_SPEECH_SECONDS` of speech. The last end may lie after the clip, as if zeros
        followed: the detector is late at the end of speech, too.
    """
    peak = int(np.abs(samples - samples.mean()).argmax())
    silence = CONTEXT_FRAMES * FRAME_SAMPLES
    lead = silence + -peak % FRAME_SAMPLES
    padded = np.pad(samples, (lead, END_FRAMES * FRAME_SAMPLES))
    frames = CONTEXT_FRAMES + _voiced_frames(padded[silence:], CONTEXT_FRAMES)
    if len(frames) * FRAME_SAMPLES < MIN_SPEECH_SECONDS * SAMPLING_RATE:
        return []
    context = max(int(frames[0]) - CONTEXT_FRAMES, 0)
    around = _voiced_frames(padded[context * FRAME_SAMPLES : (int(frames[0]) + ONSET_FRAMES) * FRAME_SAMPLES])
    breaks = np.flatnonzero(np.diff(frames) - 1 > MAX_PAUSE_SECONDS * SAMPLING_RATE / FRAME_SAMPLES)
    ends = [*(frames[breaks] + 1).tolist(), int(frames[-1]) + 1]
    onset = min(context + int(around[0]), ends[0] - 1) if len(around) else int(frames[0])
    starts = [onset, *frames[breaks + 1].tolist()]
    return [(max(start * FRAME_SAMPLES - lead, 0), end * FRAME_SAMPLES - lead) for start, end in zip(starts, ends)]


def _voiced_frames(samples: np.ndarray, silent_frames: int = 0) -> np.ndarray:
    """Returns the indices of the frames with speech, of samples that begin a stream or follow frames of zeros."""
    return np.flatnonzero(VoiceActivityDetector(silent_frames)(samples) >= SPEECH_PROBABILITY)
