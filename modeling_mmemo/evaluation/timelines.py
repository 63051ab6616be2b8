"""
Evaluation of timelines: held-out clips are joined to one long recording with known changes of emotion.

The clips are concatenated in random order, unchanged. Speech is defined as each clip without its leading and trailing
silence, independently of the model's own voice activity detection.
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
    """
    Predicts the timeline of a recording of all rows, and scores it frame by frame.

    Args:
        emotion (`MultimodalEmotionPipeline`): The pipeline.
        name, protocol (`str`): Name and protocol of the table.
        rows (`datasets.Dataset`): Rows with `audio`, `label`, `speaker` and, if `with_words`, `text`.
        with_words (`bool`): Whether to pass the texts too, with their words spread over the speech.
        seed (`int`, *optional*, defaults to 0): Seed of the order and the bootstrap.

    Returns:
        `dict` with `name`, `protocol`, `rows`, `groups`, `resampled`, `minutes`; `changes`, the number of changes of
        emotion; `frame_accuracy`, the share of speech frames with the correct label; `eder`, the emotion-diarisation
        error rate, with its parts `missed`, `confused` and `false_alarm`; `majority`, the EDER of always predicting
        the most frequent label with perfect speech detection; and `below_majority`, the relative reduction of `eder`
        against it.

    Raises:
        ValueError: If all rows have the same label.
    """
    if len(set(rows["label"])) < 2:
        raise ValueError(
            f"All rows of {name} have the same label, but a timeline needs at least two labels; choose another corpus "
            "or a higher limit."
        )
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
    """
    Concatenates the rows in random order.

    Returns:
        `tuple` of the samples; for each clip `label`, `speaker`, `start`, `end`, and `speech`, the start and end of
        its speech, in seconds from the start of the recording; and the words as `(word, start, end)`.
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
    """Returns start and end of the speech of a clip in seconds: the frames within 35 dB of the loudest one."""
    _, (start, end) = librosa.effects.trim(audio, top_db=QUIET_DB, frame_length=400, hop_length=160)
    return start / sampling_rate, end / sampling_rate


def frame_sums(result: dict[str, Any], clips: list[dict[str, Any]]) -> np.ndarray:
    """
    Counts frames of 10 ms in each clip.

    Args:
        result (`dict`): Output of the pipeline with `timeline` and `speech`.
        clips (`list[dict]`): See [`join_clips`].

    Returns:
        `np.ndarray` of shape `(clips, 4 + labels)`: speech frames, speech frames with the correct label, speech frames
        without a prediction, and predicted frames outside speech; then speech frames by true label.
    """
    count = round(clips[-1]["end"] * FRAMES_PER_SECOND)
    predictions = np.full(count, SILENCE, dtype=object)
    for entry in result["timeline"]:
        predictions[_frames(entry["start"], entry["end"])] = entry["label"]
    is_speech = np.zeros(count, bool)
    for stretch in result["speech"]:
        is_speech[_frames(*stretch)] = True
    predictions[~is_speech] = SILENCE
    labels = sorted({clip["label"] for clip in clips})
    sums = np.zeros((len(clips), 4 + len(labels)))
    for row, clip in zip(sums, clips):
        speech = predictions[_frames(*clip["speech"])]
        predicted = (predictions[_frames(clip["start"], clip["end"])] != SILENCE).sum()
        missed = (speech == SILENCE).sum()
        row[:4] = len(speech), (speech == clip["label"]).sum(), missed, predicted - (len(speech) - missed)
        row[4 + labels.index(clip["label"])] = len(speech)
    return sums


def _frames(start: float, end: float) -> slice:
    return slice(round(start * FRAMES_PER_SECOND), round(end * FRAMES_PER_SECOND))


def _measures(sums: np.ndarray) -> dict[str, np.ndarray]:
    """
    Returns the measures of sums of [`frame_sums`], `(..., 4 + labels)`; shape `(...)` each.

    Source: Wang et al., "Speech Emotion Diarization: Which Emotion Appears When?", 2023. Here errors are a share of
    the speech, not of the recording, and neutral is a label like the others.
    """
    speech, correct, missed, false_alarm = (sums[..., column] for column in range(4))
    confused = speech - correct - missed
    majority = 1 - sums[..., 4:].max(axis=-1) / speech
    eder = (missed + confused + false_alarm) / speech
    # A resample may contain only one label; the majority error is then 0.
    ratio = np.divide(eder, majority, out=np.full_like(eder, np.nan), where=majority > 0)
    return {
        "frame_accuracy": correct / speech,
        "eder": eder,
        "missed": missed / speech,
        "confused": confused / speech,
        "false_alarm": false_alarm / speech,
        "majority": majority,
        "below_majority": 1 - ratio,
    }
