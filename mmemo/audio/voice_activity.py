"""
Where a voice is heard: Silero VAD, frame by frame, over any number of chunks.

Deliberate choices:
- The network is written out here in NumPy, over the safetensors that the `silero-vad` package ships: nothing is
  unpickled, and it runs wherever a model does, with torch and without. A frame of 32 ms takes 0.04 ms, where the
  package's TorchScript takes 0.4 ms.
- All products are small ones, a frame at a time: NumPy's BLAS gives those one thread. More of them would keep spinning
  for a while afterwards, in the way of the encoder.
- It is causal: what it says of a frame never changes, so live and offline agree.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


SAMPLING_RATE = 16_000
FRAME_SAMPLES = 512
CONTEXT_SAMPLES = 64
FFT_SIZE, FFT_HOP, FFT_PADDING = 256, 128, 64
CONV_STRIDES = (1, 2, 2, 1)
STATE_SIZE = 128
# Frames that pass the convolutions together; more are no faster, and take more memory.
MAX_FRAMES = 256
# The probability from which a frame is speech; Silero's own default.
SPEECH_PROBABILITY = 0.5
MIN_VOICE_SECONDS = 0.1

State = tuple[np.ndarray, np.ndarray]


class VoiceActivityNetwork:
    """Silero's network: a spectrum, four convolutions, and an LSTM from frame to frame.

    Args:
        weights (`dict[str, np.ndarray]`): Those of `silero_vad_16k.safetensors`.

    Source: Silero Team, "Silero VAD: pre-trained enterprise-grade Voice Activity Detector", 2024 (MIT licence).
    """

    def __init__(self, weights: dict[str, np.ndarray]):
        waves = weights["stft_conv.weight"][:, 0].T
        self._real, self._imaginary = (np.ascontiguousarray(half) for half in np.split(waves, 2, axis=1))
        # Of shape (3 taps * channels, channels).
        self._kernels = [
            np.ascontiguousarray(kernel.transpose(2, 1, 0).reshape(-1, len(kernel)))
            for kernel in (weights[f"conv{number}.weight"] for number in range(1, 5))
        ]
        self._biases = [weights[f"conv{number}.bias"] for number in range(1, 5)]
        self._from_input = np.ascontiguousarray(weights["lstm_cell.weight_ih"].T)
        self._from_state = np.ascontiguousarray(weights["lstm_cell.weight_hh"].T)
        self._gate_bias = weights["lstm_cell.bias_ih"] + weights["lstm_cell.bias_hh"]
        self._last, self._last_bias = weights["final_conv.weight"].reshape(-1), weights["final_conv.bias"]

    def __call__(self, frames: np.ndarray, state: State) -> tuple[np.ndarray, State]:
        """
        Args:
            frames (`np.ndarray` of shape `(frames, 576)`): Consecutive ones, each behind the end of the one before.
            state (two `np.ndarray` of shape `(128,)`): What it returned for the frames before; zeros at first.

        Returns:
            The probabilities of speech, `(frames,)`, and the state.
        """
        gates = self._features(frames) @ self._from_input + self._gate_bias
        hidden, cell = state
        states = np.empty((len(frames), STATE_SIZE), np.float32)
        # Of one row, the product would be one of a vector, for which NumPy's BLAS starts its threads.
        rows = np.stack([hidden, hidden])
        for index, gate in enumerate(gates[:, 0]):
            gate = gate + (rows @ self._from_state)[0]
            opened = _sigmoid(gate)
            enters, stays, leaves = (opened[part : part + STATE_SIZE] for part in (0, STATE_SIZE, 3 * STATE_SIZE))
            cell = stays * cell + enters * np.tanh(gate[2 * STATE_SIZE : 3 * STATE_SIZE])
            rows[:] = states[index] = leaves * np.tanh(cell)
        probabilities = _sigmoid(np.maximum(states, 0) @ self._last + self._last_bias)
        return probabilities, (rows[0], cell)

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """What the LSTM is given of frames, `(frames, 1, 128)`."""
        padded = np.pad(frames, ((0, 0), (0, FFT_PADDING)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE, axis=1)[:, ::FFT_HOP]
        windows = np.ascontiguousarray(windows)
        features = np.sqrt((windows @ self._real) ** 2 + (windows @ self._imaginary) ** 2)
        for kernel, bias, stride in zip(self._kernels, self._biases, CONV_STRIDES):
            padded = np.pad(features, ((0, 0), (1, 1), (0, 0)))
            taps = np.lib.stride_tricks.sliding_window_view(padded, 3, axis=1)[:, ::stride].swapaxes(2, 3)
            features = np.maximum(taps.reshape(*taps.shape[:2], -1) @ kernel + bias, 0)
        return features


class VoiceActivityDetector:
    """Tells speech from silence, noise and music in a stream of samples.

    Raises:
        ValueError: If the package `silero-vad`, which holds the weights, is not installed.
    """

    def __init__(self):
        self.network = _load_network()
        self.reset()

    def reset(self) -> None:
        """Forgets what it heard."""
        self._pending = np.zeros(0, np.float32)
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._state: State = (np.zeros(STATE_SIZE, np.float32), np.zeros(STATE_SIZE, np.float32))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Takes the next samples of the stream.

        Args:
            samples (`np.ndarray` of shape `(samples,)`): float32 mono at 16 kHz, any number of them.

        Returns:
            `np.ndarray` of shape `(frames,)`: the probability of speech in each frame of 512 samples that is complete.
        """
        signal = np.concatenate([self._context, self._pending, np.asarray(samples, np.float32)])
        count = (len(signal) - CONTEXT_SAMPLES) // FRAME_SAMPLES
        end = CONTEXT_SAMPLES + count * FRAME_SAMPLES
        self._context, self._pending = signal[end - CONTEXT_SAMPLES : end], signal[end:]
        found = [np.zeros(0, np.float32)]
        if count:
            windows = np.lib.stride_tricks.sliding_window_view(signal[:end], CONTEXT_SAMPLES + FRAME_SAMPLES)
            frames = windows[::FRAME_SAMPLES]
            for start in range(0, count, MAX_FRAMES):
                probabilities, self._state = self.network(frames[start : start + MAX_FRAMES], self._state)
                found.append(probabilities)
        return np.concatenate(found)


def has_voice(samples: np.ndarray) -> bool:
    """Whether a voice is heard for a tenth of a second in samples of shape `(samples,)`, float32 mono at 16 kHz."""
    detector = VoiceActivityDetector()
    probabilities = np.concatenate([detector(samples), detector(np.zeros(FRAME_SAMPLES, np.float32))])
    return bool((probabilities >= SPEECH_PROBABILITY).sum() * FRAME_SAMPLES >= MIN_VOICE_SECONDS * SAMPLING_RATE)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (np.tanh(values / 2) + 1) / 2  # overflows nowhere


@cache
def _load_network() -> VoiceActivityNetwork:
    # Found without being imported: the import takes torch along, and has it run on one thread from then on.
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "Telling speech from silence needs the package silero-vad: pip install silero-vad. Or pass "
            "voice_activity=False, and silence is answered for like speech."
        )
    folder = Path(package.submodule_search_locations[0])
    return VoiceActivityNetwork(load_file(folder / "data" / "silero_vad_16k.safetensors"))
