"""
Plots of one recording: its timeline, its face, and the cross-modal attention of its words. No display is needed.

Deliberate choices:
- Drawing time does not depend on the length: waveform and scores are reduced to about the plot's width in pixels.
- Words are placed in several rows so that they do not overlap; if that needs too many rows, they are left out.
- Words are drawn literally: a dollar sign does not start a formula, and a glyph missing in the font is drawn as a box,
  without a warning. For scripts that matplotlib's default font lacks, set `matplotlib.rcParams["font.family"]`.
"""

import math
import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mmemo.audio.loading import AudioBlocks, AudioInput, check_channel, to_mono
from mmemo.timeline.windows import SILENCE, UNCERTAIN
from mmemo.video.face import FaceSequence
from mmemo.video.landmarks import BLENDSHAPES


# A palette for colour-blind readers. Source: Okabe and Ito, "Color Universal Design" (2008).
COLORS = {
    "angry": "#D55E00",  # vermillion
    "disgust": "#009E73",  # bluish green
    "fear": "#CC79A7",  # reddish purple
    "happy": "#F0E442",  # yellow
    "neutral": "#56B4E9",  # sky blue
    "sad": "#0072B2",  # blue
    "surprise": "#E69F00",  # orange
}
OTHER_COLORS = colormaps["tab20b"]
UNCERTAIN_COLOR, UNCERTAIN_HATCH = "#777777", "///"
SHADE = 0.4  # opacity
PRESENCE_COLOR = "#dddddd"
# Blendshapes that are drawn: those with the largest sum over the timeline.
MAX_BLENDSHAPES = 4

FORMATS = (".png", ".svg")
DOTS_PER_INCH = 120
WIDTH_INCHES = 12
MAX_COLUMNS = 2000
MAX_LABELS, MAX_ROWS = 120, 12
NUM_LINES = 8
# Font size of the words; a letter is about 0.6 em wide.
FONT_POINTS = 7
LETTER_INCHES = 0.6 * FONT_POINTS / 72
WORDS_INCHES = 9.5  # a lower bound of the time axis's width
SAMPLING_RATE = 16_000
# Tolerance between the duration of the audio and of the result: in seconds, and relative.
DURATION_TOLERANCE = 0.5, 0.05
GAP_SECONDS = 1e-6
# To the right of the panel.
LEGEND: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}


def plot_timeline(
    result: dict[str, Any],
    audio: AudioInput | None = None,
    path: str | os.PathLike | None = None,
    sampling_rate: float | None = None,
    channel: int | None = None,
) -> Figure:
    """
    Plots the emotions of a recording over time.

    The panels share one time axis: the waveform, shaded by the emotion of each span, if there is audio; the stacked
    scores of the segments, with gaps for silence and hatching for uncertain segments; for a video, the share of frames
    in which the face was found, and its strongest blendshapes, with gaps where an entry does not list them; the words,
    if there are any. Words that need more than 120 labels, or more than 12 rows, are left out, which the title states.

    Args:
        result (`dict`):
            A result of the pipeline with `"duration"` in seconds, `"timeline"` and, for the waveform, `"spans"`.
        audio (`AudioInput`, *optional*):
            The recording, in any of the forms that [`AudioInput`] lists.
        path (`str` or `os.PathLike`, *optional*):
            Where to save the plot, ending in .png or .svg.
        sampling_rate (`float`, *optional*, defaults to 16000):
            Sampling rate in Hz of audio that is a bare array.
        channel (`int`, *optional*):
            The channel of the waveform; the mean of all channels by default.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the result has no timeline, the path has another suffix, or the audio another duration or no
            such channel.
    """
    if "timeline" not in result or not result["timeline"]:
        raise ValueError(
            "The result has no 'timeline' to plot; call the pipeline with return_timeline=True. For a call, pass the "
            "result of one speaker: {'duration': result['duration'], **result['speakers'][name]}."
        )
    _check_path(path)
    duration, timeline = result["duration"], result["timeline"]
    samples = None if audio is None else _load(audio, sampling_rate, duration, channel)
    words, note = _place_words(timeline, duration)
    heights = {"waveform": 1.6, "scores": 2.4, "face": 1.4}
    heights["words"] = 0.2 + 0.15 * (1 + max((row for *_, row in words), default=0))
    if samples is None:
        del heights["waveform"]
    if "face" not in timeline[0]:
        del heights["face"]
    if not words:
        del heights["words"]
    figure = Figure(figsize=(WIDTH_INCHES, 0.7 + sum(heights.values())), dpi=DOTS_PER_INCH, layout="constrained")
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=list(heights.values()))[:, 0]
    axes = dict(zip(heights, panels))
    spans = result.get("spans", [])
    colors = _colors(timeline, spans)
    if samples is not None:
        _draw_waveform(axes["waveform"], samples, spans, colors)
    _draw_scores(axes["scores"], timeline, colors)
    axes["scores"].set_title(note, loc="right", fontsize=FONT_POINTS)
    if "face" in axes:
        _draw_face(axes["face"], timeline)
    if words:
        _draw_words(axes["words"], words)
    panels[-1].set(xlabel="seconds", xlim=(0, duration))
    _save(figure, path)
    return figure


def _check_path(path: str | os.PathLike | None) -> None:
    if path is not None and Path(path).suffix.lower() not in FORMATS:
        raise ValueError(f"path={os.fspath(path)!r} must end in one of {FORMATS}.")


def _save(figure: Figure, path: str | os.PathLike | None) -> None:
    if path is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
            figure.savefig(path)


def _load(audio: AudioInput, sampling_rate: float | None, duration: float, channel: int | None) -> np.ndarray:
    # `load_audio` raises on silence, which is valid in a recording.
    blocks = AudioBlocks(audio, sampling_rate, SAMPLING_RATE)
    check_channel("The audio", blocks.channels, channel)
    samples = np.concatenate([to_mono(block, channel) for block in blocks])
    seconds = len(samples) / SAMPLING_RATE
    if abs(seconds - duration) > max(DURATION_TOLERANCE[0], DURATION_TOLERANCE[1] * duration):
        raise ValueError(
            f"The audio lasts {seconds:.2f} s, but the result is for {duration:.2f} s; pass the audio of the result, "
            "and sampling_rate= if it is a bare array."
        )
    return samples


def _colors(timeline: list[dict], spans: list[dict]) -> dict[str, Any]:
    """Returns the colour of each label of the model, in a fixed order, and of "uncertain"."""
    labels = {score["label"] for entry in timeline for score in entry["scores"]}
    return label_colors(labels | {span["label"] for span in spans})


def label_colors(labels: Iterable[str]) -> dict[str, Any]:
    """Returns the colour of each label other than "silence", in a fixed order, and of "uncertain"."""
    emotions = set(labels) - {SILENCE, UNCERTAIN}
    others = sorted(emotions - COLORS.keys())
    extra = {label: OTHER_COLORS(index % OTHER_COLORS.N) for index, label in enumerate(others)}
    return {label: COLORS.get(label) or extra[label] for label in sorted(emotions)} | {UNCERTAIN: UNCERTAIN_COLOR}


def _draw_waveform(axes: Axes, samples: np.ndarray, spans: list[dict], colors: dict[str, Any]) -> None:
    for label in sorted({span["label"] for span in spans} - {SILENCE}):
        _shade(axes, [(span["start"], span["end"]) for span in spans if span["label"] == label], label, colors)
    borders = np.linspace(0, len(samples), min(MAX_COLUMNS, len(samples)) + 1).astype(int)
    low, high = (extreme.reduceat(samples, borders[:-1]) for extreme in (np.minimum, np.maximum))
    centers = (borders[:-1] + borders[1:]) / 2 / SAMPLING_RATE
    axes.fill_between(centers, low, high, color="black", linewidth=0.4)
    peak = 1.05 * np.abs(samples).max()
    axes.set(ylabel="waveform", ylim=(-peak, peak), yticks=[])


def _shade(axes: Axes, times: list[tuple[float, float]], label: str, colors: dict[str, Any]) -> None:
    """Shades the full height of the panel between the given starts and ends in seconds."""
    axes.broken_barh(
        [(start, end - start) for start, end in times],
        (0, 1),
        transform=axes.get_xaxis_transform(),
        facecolor=colors[label],
        edgecolor=UNCERTAIN_COLOR,  # of the hatching
        hatch=UNCERTAIN_HATCH if label == UNCERTAIN else None,
        alpha=SHADE,
        linewidth=0,
        label=label,
    )


def _draw_scores(axes: Axes, timeline: list[dict], colors: dict[str, Any]) -> None:
    labels = [label for label in colors if label != UNCERTAIN]
    top = 1.0
    if labels:  # there are none if everything is silent
        times, scores = _score_columns(timeline, labels)
        axes.stackplot(times, scores.T, labels=labels, colors=[colors[label] for label in labels], linewidth=0)
        top = max(top, np.nanmax(scores.sum(axis=1)))
    runs = [list(run) for label, run in groupby(timeline, key=lambda entry: entry["label"]) if label == UNCERTAIN]
    if runs:
        _shade(axes, [(run[0]["start"], run[-1]["end"]) for run in runs], UNCERTAIN, colors)
    axes.set(ylabel="scores", ylim=(0, top))
    if labels or runs:
        axes.legend(**LEGEND, reverse=True)


def _draw_face(axes: Axes, timeline: list[dict]) -> None:
    totals: Counter[str] = Counter()
    faces = []
    for entry in timeline:
        shapes = {shape["name"]: shape["score"] for shape in entry["face"]["blendshapes"]}
        totals.update(shapes)
        scores = {"presence": entry["face"]["presence"], **shapes}
        faces.append({**entry, "scores": [{"label": name, "score": score} for name, score in scores.items()]})
    names = [name for name, _ in totals.most_common(MAX_BLENDSHAPES)]
    times, (presence, *lines) = (columns.T for columns in _score_columns(faces, ["presence", *names]))
    axes.fill_between(times, presence, color=PRESENCE_COLOR, linewidth=0, label="presence")
    for name, values in zip(names, lines):
        axes.plot(times, np.where(values > 0, values, np.nan), linewidth=1.2, label=name)
    axes.set(ylabel="face", ylim=(0, 1))
    axes.legend(**LEGEND)


def _score_columns(timeline: list[dict], labels: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """
    Converts the scores of segments to the points of a step function, with NaN in gaps. With more than `MAX_COLUMNS`
    segments, a column is the mean over neighbouring segments that are not silent.

    Returns:
        Seconds of shape `(points,)` and scores of shape `(points, labels)`.
    """
    table = np.zeros((len(timeline), len(labels)))
    for row, entry in zip(table, timeline):
        scores = {score["label"]: score["score"] for score in entry["scores"]}
        row[:] = [scores.get(label, 0) for label in labels]
    size = math.ceil(len(timeline) / MAX_COLUMNS)
    first = np.arange(0, len(timeline), size)
    last = np.minimum(first + size, len(timeline)) - 1
    start, end = (np.array([entry[key] for entry in timeline], float) for key in ("start", "end"))
    start, end = start[first], end[last]
    end[:-1] = np.minimum(end[:-1], start[1:])  # segments overlap if the hop is shorter
    voiced = np.add.reduceat([bool(entry["scores"]) for entry in timeline], first, dtype=int)[:, None]
    means = np.where(voiced > 0, np.add.reduceat(table, first) / np.maximum(voiced, 1), np.nan)
    # Each column has a point at its start, one at its end, and a NaN point if a gap follows.
    gap = np.append(start[1:] - end[:-1] > GAP_SECONDS, False)
    drawn = np.stack([np.full(len(gap), True), np.full(len(gap), True), gap], axis=1)
    times = np.stack([start, end, end], axis=1)
    points = np.stack([means, means, np.full_like(means, np.nan)], axis=1)
    return times[drawn], points[drawn]


def _place_words(timeline: list[dict], duration: float) -> tuple[list[tuple[float, str, int]], str]:
    """
    Places the joined words of each segment in the first row that is free at the segment's start.

    Returns:
        `(seconds, text, row)` of each label, and a note if all of them are left out.
    """
    labels = [(entry["start"], " ".join(entry["words"])) for entry in timeline if entry["words"]]
    note = f"words left out: {len(labels)} labels would not be legible"
    if len(labels) > MAX_LABELS:
        return [], note
    free_from: list[float] = []  # for each row, in seconds
    placed = []
    for start, text in labels:
        letters = 2 + sum(5 / 3 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
        width = letters * LETTER_INCHES * duration / WORDS_INCHES
        start = max(0.0, min(start, duration - width))  # the last labels end with the axis
        row = next((row for row, free in enumerate(free_from) if free <= start), len(free_from))
        free_from[row : row + 1] = [start + width]  # a new row if there is none
        placed.append((start, text, row))
    return ([], note) if len(free_from) > MAX_ROWS else (placed, "")


def _draw_words(axes: Axes, words: list[tuple[float, str, int]]) -> None:
    for start, text, row in words:
        axes.text(start, row, text, fontsize=FONT_POINTS, va="center", parse_math=False).set_in_layout(False)
    axes.set(ylabel="words", ylim=(max(row for *_, row in words) + 0.5, -0.5), yticks=[])


def plot_blendshapes(face: FaceSequence, path: str | os.PathLike | None = None) -> Figure:
    """
    Plots the eight blendshapes of a face with the highest mean over time, with gaps where the face is absent.

    Args:
        face ([`FaceSequence`]): The face, present in at least one frame.
        path (`str` or `os.PathLike`, *optional*): Where to save the plot, ending in .png or .svg.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the face is absent in all frames, or the path has another suffix.
    """
    names = [name for name, _ in face.strongest(0, face.duration, NUM_LINES)]
    if not names:
        raise ValueError(f"The face is absent in all {len(face.is_present)} frames; there is nothing to plot.")
    _check_path(path)
    figure = Figure(figsize=(WIDTH_INCHES, 3), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    values = np.where(face.is_present[:, None], face.blendshapes, np.nan)
    # Of a frame between two others without the face, a line alone would not be drawn.
    lines = axes.plot(face.times.mean(axis=1), values[:, [BLENDSHAPES.index(name) for name in names]], marker=".")
    axes.legend(lines, names, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set(xlabel="seconds", xlim=(0, face.duration), ylabel="blendshapes", ylim=(0, 1))
    _save(figure, path)
    return figure


def plot_attention(
    attention: ArrayLike,
    words: list[str],
    seconds: float,
    path: str | os.PathLike | None = None,
    segment_seconds: float = 0.5,
) -> Figure:
    """
    Plots the attention of each word over the audio.

    Args:
        attention (array of shape `(words, audio_positions)`):
            Attention weights, each row summing to 1.
        words (`list[str]`):
            The words or tokens of the rows.
        seconds (`float`):
            Duration of the audio, divided equally among the positions.
        path (`str` or `os.PathLike`, *optional*):
            Where to save the plot, ending in .png or .svg.
        segment_seconds (`float`, *optional*, defaults to 0.5):
            Duration of a cell of the map; its weight is the sum over its positions. The weight of a position on a
            boundary is divided by its overlap with both cells.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the shapes do not match, a weight is not finite, a duration is not positive, or the path has
            another suffix.
    """
    weights = np.asarray(attention, dtype=float)
    if weights.ndim != 2 or weights.size == 0:
        raise ValueError(
            f"attention has shape {weights.shape}; it must be (words, audio_positions), with at least one of each. "
            "Select one item of the batch, and one attention head or their mean."
        )
    if len(words) != len(weights):
        raise ValueError(f"Got {len(words)} words but {len(weights)} rows of attention; they must match 1:1.")
    if not np.isfinite(weights).all():
        raise ValueError("attention contains NaN or infinite weights; drop the rows of padding.")
    for name, value in (("seconds", seconds), ("segment_seconds", segment_seconds)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} must be a positive number of seconds.")
    _check_path(path)
    cells = _sum_segments(weights, seconds, segment_seconds)
    figure = Figure(figsize=(WIDTH_INCHES, 1.2 + 0.2 * len(words)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    extent = (0, cells.shape[1] * segment_seconds, len(words) - 0.5, -0.5)
    image = axes.imshow(cells, extent=extent, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axes.set_yticks(range(len(words)), words, parse_math=False)
    axes.set(xlabel="seconds", xlim=(0, seconds))  # the last segment may be shorter
    figure.colorbar(image, label=f"attention in {segment_seconds:g} s", pad=0.01)
    _save(figure, path)
    return figure


def _sum_segments(weights: np.ndarray, seconds: float, segment_seconds: float) -> np.ndarray:
    """Sums weights of shape `(words, audio_positions)` over time segments, to `(words, segments)`."""
    segments = math.ceil(round(seconds / segment_seconds, 6))
    borders = np.minimum(np.arange(segments + 1) * segment_seconds, seconds)
    positions = np.linspace(0, seconds, weights.shape[1] + 1)
    sums = np.concatenate([np.zeros((len(weights), 1)), weights.cumsum(axis=1)], axis=1)
    return np.diff([np.interp(borders, positions, row) for row in sums], axis=1)
