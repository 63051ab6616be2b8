"""
Voice activity detection: Silero VAD, frame by frame, over chunks of any size.

Deliberate choices:
- The network is implemented in NumPy and loads the safetensors file that the `silero-vad` package ships: nothing is
  unpickled, and it runs with and without torch. A frame of 32 ms takes 0.04 ms, and 0.4 ms in the package's
  TorchScript.
- All matrix products are small, one frame at a time, for which NumPy's BLAS uses one thread. More threads would keep
  spinning for a while afterwards and slow the encoder down.
- It is causal: later samples never change the probability of a frame, so live and offline agree.
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
# Frames per batch of the convolutions; larger batches are not faster and take more memory.
MAX_FRAMES = 256
# Frames with at least this probability are speech; Silero's own default.
SPEECH_PROBABILITY = 0.5
# A file inside the package `silero-vad`, tested with versions 6.2.3 and later, below 7.
WEIGHTS_FILE = "silero_vad_16k.safetensors"

State = tuple[np.ndarray, np.ndarray]


class VoiceActivityNetwork:
    """
    Silero's network: a magnitude spectrum, four convolutions, and an LSTM over frames. Its probabilities are within
    1e-5 of those of the package's TorchScript model with the same weights.

    Args:
        weights (`dict[str, np.ndarray]`): The tensors of `silero_vad_16k.safetensors`.

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
            frames (`np.ndarray` of shape `(frames, 576)`):
                Consecutive frames of 512 samples, each after the last 64 samples of the frame before.
            state (two `np.ndarray` of shape `(128,)`):
                The state that it returned for the previous frames; zeros at the beginning.

        Returns:
            The probabilities of speech, of shape `(frames,)`, and the new state.
        """
        gates = self._features(frames) @ self._from_input + self._gate_bias
        hidden, cell = state
        states = np.empty((len(frames), STATE_SIZE), np.float32)
        # With a single row this would be a matrix-vector product, for which NumPy's BLAS starts its threads.
        rows = np.stack([hidden, hidden])
        for index, gate in enumerate(gates[:, 0]):
            gate = gate + (rows @ self._from_state)[0]
            opened = _sigmoid(gate)
            enter, keep, leave = (opened[part : part + STATE_SIZE] for part in (0, STATE_SIZE, 3 * STATE_SIZE))
            cell = keep * cell + enter * np.tanh(gate[2 * STATE_SIZE : 3 * STATE_SIZE])
            rows[:] = states[index] = leave * np.tanh(cell)
        probabilities = _sigmoid(np.maximum(states, 0) @ self._last + self._last_bias)
        return probabilities, (rows[0], cell)

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """Returns the input of the LSTM, of shape `(frames, 1, 128)`."""
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
    """
    Detects speech, as opposed to silence, noise and music, in a stream of samples.

    Args:
        silent_frames (`int`, *optional*, defaults to 0): Number of frames of zeros before the stream.

    Raises:
        ValueError: If the package `silero-vad`, which holds the weights, is not installed, or does not hold them.
    """

    def __init__(self, silent_frames: int = 0):
        self.network = _load_network()
        self._first_state = _state_after_silence(silent_frames)
        self.reset()

    def reset(self) -> None:
        """Resets the state; the next samples begin a new stream."""
        self._pending = np.zeros(0, np.float32)
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._state = self._first_state

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """
        Processes the next samples of the stream.

        Args:
            samples (`np.ndarray` of shape `(samples,)`): Any number of samples, float32, mono, 16 kHz.

        Returns:
            `np.ndarray` of shape `(frames,)`: the probability of speech in each frame of 512 samples that is complete
            now.
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


@cache
def _state_after_silence(frames: int) -> State:
    """Returns the state of the network after that many frames of zeros."""
    state = np.zeros(STATE_SIZE, np.float32), np.zeros(STATE_SIZE, np.float32)
    if frames:
        _, state = _load_network()(np.zeros((frames, CONTEXT_SAMPLES + FRAME_SAMPLES), np.float32), state)
    return state


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (np.tanh(values / 2) + 1) / 2  # does not overflow


@cache
def _load_network() -> VoiceActivityNetwork:
    # Located without importing it: the import loads torch and sets torch to one thread.
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "Speech detection needs the package silero-vad: pip install 'silero-vad>=6.2.3,<7'. Or do without: "
            "voice_activity=False for timelines, processor.speech_padding_s = None for clips."
        )
    path = Path(package.submodule_search_locations[0]) / "data" / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(
            f"The installed silero-vad has no {path}, which speech detection loads; install a version that has it: "
            "pip install 'silero-vad>=6.2.3,<7'. Or do without: voice_activity=False for timelines, "
            "processor.speech_padding_s = None for clips."
        )
    return VoiceActivityNetwork(load_file(path))
