"""Timelines against the truth: held-out clips in one long recording, whose changes of emotion are known.

The clips follow each other in random order, as they were recorded. What counts as speech is a clip without the quiet
before and behind it, whatever the model's own detector says.
"""

import itertools
from typing import Any

import librosa
import numpy as np
from datasets import Dataset

from mmemo.timeline.windows import SILENCE
from mmemo.words.times import read_word_times
from modeling_mmemo.evaluation.bootstrap import percentile_interval, resampled_sums, speaker_groups
from modeling_mmemo.evaluation.figures import figure
from modeling_mmemo.pipelines import MultimodalEmotionPipeline


FRAMES_PER_SECOND = 100
QUIET_DB = 35


def timeline_table(
    emotion: MultimodalEmotionPipeline, name: str, protocol: str, rows: Dataset, with_words: bool, seed: int = 0
) -> dict[str, Any]:
    """Follows a recording of all rows, and scores it frame by frame.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        name, protocol (`str`): Of the table.
        rows (`datasets.Dataset`): With `audio`, `label`, `speaker` and, where wanted, `text`.
        with_words (`bool`): Whether the texts are given too, their words spread over the speech.
        seed (`int`, *optional*, defaults to 0): Of the order and the bootstrap.

    Returns:
        `dict` with `name`, `protocol`, `rows`, `groups`, `resampled`, `minutes`, the number of `changes` of emotion,
        the share of frames of speech with the right label (`frame_accuracy`), the emotion-diarisation error rate
        (`eder`) with its parts `missed`, `confused` and `false_alarm`, that of the answer that always is the most
        frequent label and knows exactly when somebody speaks (`majority`), and the share by which `eder` is
        `below_majority`.

    Raises:
        ValueError: If all rows have one label.
    """
    if len(set(rows["label"])) < 2:
        raise ValueError(f"The rows of {name} have one label, so there is nothing to tell apart; choose others.")
    samples, clips, words = join_clips(emotion, rows, with_words, seed)
    item = {"audio": samples, "word_times": words} if with_words else samples
    result = emotion(item, return_timeline=True)
    sums = frame_sums(result, clips)
    groups, resampled = speaker_groups([clip["speaker"] for clip in clips])
    drawn = resampled_sums(sums, groups, seed=seed)
    measures, in_resamples = _measures(sums.sum(axis=0)), _measures(drawn)
    labels = [clip["label"] for clip in clips]
    return {
        "name": name,
        "protocol": protocol,
        "rows": len(clips),
        "groups": len(np.unique(groups)),
        "resampled": resampled,
        "minutes": round(result["duration"] / 60, 2),
        "changes": sum(label != after for label, after in itertools.pairwise(labels)),
        **{key: figure(value, percentile_interval(in_resamples[key])) for key, value in measures.items()},
    }


def join_clips(
    emotion: MultimodalEmotionPipeline, rows: Dataset, with_words: bool, seed: int = 0
) -> tuple[np.ndarray, list[dict[str, Any]], list[tuple[str, float, float]]]:
    """Puts the rows behind each other in random order.

    Returns:
        The samples; for each clip its `label` and `speaker`, its `start` and `end`, and where its speech begins and
        ends (`speech`), in seconds of the whole; and the words with their times.
    """
    rate = emotion.processor.feature_extractor.sampling_rate
    parts, clips, words, seconds = [], [], [], 0.0
    for index in np.random.default_rng(seed).permutation(len(rows)).tolist():
        row = rows[index]
        audio = emotion.processor.load_audio(row["audio"])
        speech = tuple(seconds + edge for edge in speech_edges(audio, rate))
        end = seconds + len(audio) / rate
        clips.append(
            {"label": row["label"], "speaker": row["speaker"], "start": seconds, "end": end, "speech": speech}
        )
        if with_words:
            words += read_word_times([(row["text"], *speech)])
        parts.append(audio)
        seconds = end
    return np.concatenate(parts), clips, words


def speech_edges(audio: np.ndarray, sampling_rate: int) -> tuple[float, float]:
    """Where the speech of a clip begins and ends: between frames within 35 dB of the loudest, in seconds."""
    _, (start, end) = librosa.effects.trim(audio, top_db=QUIET_DB, frame_length=400, hop_length=160)
    return start / sampling_rate, end / sampling_rate


def frame_sums(result: dict[str, Any], clips: list[dict[str, Any]]) -> np.ndarray:
    """Counts frames of 10 ms, clip by clip.

    Args:
        result (`dict`): A timeline with its `speech`.
        clips (`list[dict]`): See [`join_clips`].

    Returns:
        `np.ndarray` of shape `(clips, 4 + labels)`: frames of speech, of those with the right label, of those without
        an answer, and frames with an answer where nobody speaks; then frames of speech by true label.
    """
    count = round(clips[-1]["end"] * FRAMES_PER_SECOND)
    answers = np.full(count, SILENCE, dtype=object)
    for entry in result["timeline"]:
        answers[_frames(entry["start"], entry["end"])] = entry["label"]
    heard = np.zeros(count, bool)
    for stretch in result["speech"]:
        heard[_frames(*stretch)] = True
    answers[~heard] = SILENCE
    labels = sorted({clip["label"] for clip in clips})
    sums = np.zeros((len(clips), 4 + len(labels)))
    for row, clip in zip(sums, clips):
        speech = answers[_frames(*clip["speech"])]
        answered = (answers[_frames(clip["start"], clip["end"])] != SILENCE).sum()
        missed = (speech == SILENCE).sum()
        row[:4] = len(speech), (speech == clip["label"]).sum(), missed, answered - (len(speech) - missed)
        row[4 + labels.index(clip["label"])] = len(speech)
    return sums


def _frames(start: float, end: float) -> slice:
    return slice(round(start * FRAMES_PER_SECOND), round(end * FRAMES_PER_SECOND))


def _measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of sums of shape `(..., 4 + labels)`.

    Source: Wang et al., "Speech Emotion Diarization: Which Emotion Appears When?", 2023; here errors are a share
    of the speech, not of the whole, and neutral speech is an emotion like the others.
    """
    speech, right, missed, false_alarm = (sums[..., column] for column in range(4))
    confused = speech - right - missed
    majority = 1 - sums[..., 4:].max(axis=-1) / speech
    eder = (missed + confused + false_alarm) / speech
    # Clips that were drawn may all have one label, which is then always right.
    ratio = np.divide(eder, majority, out=np.full_like(eder, np.nan), where=majority > 0)
    return {
        "frame_accuracy": right / speech,
        "eder": eder,
        "missed": missed / speech,
        "confused": confused / speech,
        "false_alarm": false_alarm / speech,
        "majority": majority,
        "below_majority": 1 - ratio,
    }
