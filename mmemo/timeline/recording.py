"""
A recording and the speakers in it: read once, block by block, and cut into windows.

Deliberate choices:
- However many channels or turns it has, a recording is read once and never held in memory as a whole.
- Of a call, only the customer's emotions are predicted unless the caller selects everyone: the other speakers are at
  work.
"""

import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mmemo.audio.loading import AudioBlocks, check_channel, to_mono
from mmemo.timeline.speaker_turns import SpeakerTurns, read_speaker_turns
from mmemo.timeline.track import Track
from mmemo.timeline.windows import FRAME_SECONDS, Span, TimelineOptions, Window, Word
from mmemo.video.face import FaceSequence
from mmemo.words.times import (
    LATE_START_SECONDS,
    locate_words,
    read_word_times,
    separate_word_times,
)
from mmemo.words.transcription import transcribe


# Words without audio are read in steps of this length.
STEP_SECONDS = 30.0


@dataclass(frozen=True)
class SpeakerOptions:
    """
    The speakers of a recording that get predictions.

    Args:
        channel (`int`, *optional*): The audio channel; the mean of all channels by default.
        channels (`str`, *optional*): `"split"` treats each channel as one speaker.
        speaker_turns (`SpeakerTurns`, *optional*): The turns of the speakers; each turn gets a prediction.
        customer (`int` or `str`, *optional*):
            The channel or speaker whose emotions are predicted: a channel by number or by its name in results, `1` or
            `"channel_1"`; a speaker by name.
        everyone (`bool`, *optional*, defaults to `False`): Whether to predict the emotions of all speakers.

    Raises:
        ValueError: If an option is unknown, or two contradict each other.
    """

    channel: int | None = None
    channels: str | None = None
    speaker_turns: SpeakerTurns | None = None
    customer: int | str | None = None
    everyone: bool = False

    def __post_init__(self):
        if self.channels not in (None, "split"):
            raise ValueError(f"channels={self.channels!r} is unknown; set 'split', or channel for one of them.")
        if self.channels and (self.speaker_turns is not None or self.channel is not None):
            raise ValueError("channels='split' takes every channel; leave channel and speaker_turns out.")
        if self.channels is None and self.speaker_turns is None and (self.customer is not None or self.everyone):
            raise ValueError("customer and everyone choose among speakers; set channels='split' or speaker_turns too.")
        if self.customer is not None and self.everyone:
            raise ValueError(f"customer={self.customer!r} contradicts everyone; set one of them.")

    def selected(self, speakers: list[str]) -> set[str]:
        """
        Returns the speakers that get predictions.

        Args:
            speakers (`list[str]`): The names of all speakers of the recording, as results use them.

        Raises:
            ValueError: If no speaker is selected, or one that the recording does not have.
        """
        if self.everyone:
            return set(speakers)
        kind = "channel" if self.channels else "speaker"
        if self.customer is None:
            raise ValueError(
                f"No speaker is selected. Pass customer=, the {kind} of the customer, one of {speakers}. "
                "everyone=True selects all; inferring the emotions of people at work is prohibited in the European "
                "Union (AI Act, Art. 5(1)(f))."
            )
        name = channel_name(self.customer) if self.channels else str(self.customer).strip()
        if name not in speakers:
            also = " A channel may also be given by its number." if self.channels else ""
            raise ValueError(
                f"customer={self.customer!r} is not a {kind} of this recording; pass one of {speakers}.{also}"
            )
        return {name}


def channel_name(channel: Any) -> str:
    """Returns the name of a channel in results, given as that name or as its number: 1, "1" and "channel_1"."""
    name = str(channel).strip()
    return f"channel_{int(name)}" if name.isdecimal() else name


@dataclass
class Source:
    """
    A voice in a recording: all of it, one of its channels, or one turn of a speaker.

    Args:
        track ([`Track`]): Cuts its samples into windows.
        speaker (`str`, *optional*): The name of the speaker.
        channel (`int`, *optional*): The audio channel; the mean of all channels by default.
        start, end (`float`): Where it lies in the recording, in seconds; spans are shifted accordingly.
        is_selected (`bool`): Whether its emotions are predicted; otherwise only its speech is detected.
        spans (`list[Span]`), speech (`list[tuple[float, float]]`): Its results, in seconds of the recording.
        words (`list[str]`): The words of a turn.
        is_finished (`bool`): Whether its last samples were read.
    """

    track: Track
    speaker: str | None = None
    channel: int | None = None
    start: float = 0.0
    end: float = math.inf
    is_selected: bool = True
    spans: list[Span] = field(default_factory=list)
    speech: list[tuple[float, float]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    is_finished: bool = False

    def collect(self) -> None:
        """Moves finished spans and speech from the track to this source."""
        for span in self.track.pop():
            span.start, span.end = span.start + self.start, span.end + self.start
            self.spans.append(span)
        speech = [(start + self.start, end + self.start) for start, end in self.track.pop_speech()]
        if self.end == math.inf:  # the speech of a turn is the turn itself
            self.speech += speech


class Recording:
    """
    Reads a recording once and cuts all its sources into windows; iterating yields the windows in order.

    Args:
        blocks (`Iterable` of `np.ndarray` of shape `(channels, samples)`, *optional*): The audio, block by block.
        sources (`list[Source]`): The voices in it.
        sampling_rate (`int`): Of the audio, in Hz.
        duration (`float`, *optional*): In seconds, if known in advance; required for a recording without audio.
        has_turns (`bool`, *optional*, defaults to `False`): Whether each source is a turn.
        face ([`FaceSequence`], *optional*): The face in its video.
    """

    def __init__(
        self,
        blocks: Iterable[np.ndarray] | None,
        sources: list[Source],
        sampling_rate: int,
        duration: float | None = None,
        has_turns: bool = False,
        face: FaceSequence | None = None,
    ):
        self.face = face
        self.blocks = blocks
        self.sources = sources
        self.sampling_rate = sampling_rate
        self.expected_duration = duration
        self.has_turns = has_turns
        self.duration = 0.0

    def __iter__(self) -> Iterator[Window]:
        if self.blocks is None:
            # In steps, as audio arrives in blocks: each window looks at all open spans.
            while (left := (self.expected_duration or 0.0) - self.duration) > 0:
                step = min(left, STEP_SECONDS)
                self.duration += step
                for source in self.sources:
                    yield from source.track.advance(step)
                self.collect()
        else:
            first = 0
            for block in self.blocks:
                last = first + block.shape[1]
                self.duration = last / self.sampling_rate
                mean = to_mono(block)
                for source in self.sources:
                    if not source.is_finished and source.start < self.duration:
                        yield from self._feed(source, mean if source.channel is None else block[source.channel], first)
                first = last
                self.collect()
            yield from self._outlast_sound()
        for source in self.sources:
            if not source.is_finished:
                yield from self._finish(source)

    def _outlast_sound(self) -> Iterator[Window]:
        """Continues with silence while the face of a video is there after its sound."""
        if self.face is None or not len(self.face.times):
            return
        start, end = self.face.times[-1].tolist()
        # The last frame may end after the sound of a file of one length.
        while start > self.duration:
            step = min(end - self.duration, STEP_SECONDS)
            self.duration += step
            for source in self.sources:
                yield from source.track.feed(np.zeros(round(step * self.sampling_rate), np.float32))
            self.collect()

    def collect(self) -> None:
        """Collects finished results of all sources; call it once more after the last window is predicted."""
        for source in self.sources:
            source.collect()

    def _feed(self, source: Source, samples: np.ndarray, first: int) -> Iterator[Window]:
        """Feeds a source its part of the samples, which start at sample `first` of the recording."""
        begin = max(round(source.start * self.sampling_rate) - first, 0)
        stop = None if source.end == math.inf else round(source.end * self.sampling_rate) - first
        if len(samples[begin:stop]):
            yield from source.track.feed(samples[begin:stop])
        if stop is not None and stop <= len(samples):
            yield from self._finish(source)

    def _finish(self, source: Source) -> Iterator[Window]:
        source.is_finished = True
        yield from source.track.finish()


def open_recording(
    processor: Any,
    item: dict[str, Any],
    modalities: Collection[str],
    speakers: SpeakerOptions | None = None,
    options: TimelineOptions | None = None,
    transcriber: Any = None,
) -> Recording:
    """
    Opens a recording, or a text with timestamps, and cuts it into windows.

    Args:
        processor ([`ItemProcessing`]): The processor of the model.
        item (`dict`):
            `audio`, `text`, `word_times` and `sampling_rate` as in [`MMEmoProcessor.__call__`], of one item; `audio`
            may also be [`AudioBlocks`] at the processor's sampling rate; `video` is a [`FaceSequence`]. With
            `channels="split"`, `word_times` is a dictionary of them by channel.
        modalities (`Collection[str]`):
            The modalities that the model encodes. Without `"text"`, words with timestamps only define the spans.
        speakers ([`SpeakerOptions`], *optional*): The speakers that get predictions.
        options ([`TimelineOptions`], *optional*): How the recording is cut.
        transcriber (*optional*): Transcribes the recording if there are no words; see [`transcribe`].

    Raises:
        ValueError: If a part of the item or an option is invalid, or contradicts another.
    """
    for name in ("context", "speaker"):
        if item.get(name):
            raise ValueError(
                f"{name}={item[name]!r} belongs to one text, and a timeline has many; leave {name} out, or predict "
                "the item as a whole."
            )
    speakers, options = speakers or SpeakerOptions(), options or TimelineOptions()
    text, word_times = separate_word_times(item.get("text"), item.get("word_times"))
    text = text if text and text.strip() else None
    face = item.get("video")
    if face is not None and (speakers.channels or speakers.speaker_turns is not None):
        raise ValueError("A video shows one face, and channels or turns have several speakers; leave the video out.")
    if item.get("audio") is None:
        if "text" not in modalities and face is None:
            raise ValueError("This model has no text encoder, so a timeline needs audio; pass audio.")
        return _open_words(processor, modalities, text, word_times, face, speakers, options)
    return _AudioOpener(processor, item, modalities, text, word_times, speakers, options, transcriber).open()


def _open_words(
    processor: Any,
    modalities: Collection[str],
    text: str | None,
    word_times: Any,
    face: FaceSequence | None,
    speakers: SpeakerOptions,
    options: TimelineOptions,
) -> Recording:
    """Opens a text with timestamps, a video, or both, without audio."""
    if speakers.channels or speakers.speaker_turns is not None:
        raise ValueError("Channels and speaker turns are parts of an audio, and there is none; pass audio.")
    words = read_words(word_times, text, None)
    if not words and face is None:
        raise ValueError(
            "A timeline needs audio, words with timestamps or a video; pass audio, word_times, subtitles or video."
        )
    rate = _sampling_rate(processor)
    duration = 0.0 if face is None else face.duration
    if words:
        # A last word of zero length lasts one frame.
        duration = max(duration, words[-1][2], words[-1][1] + FRAME_SECONDS)
    options, text = replace(options, voice_activity=False), None if words else text
    track = Track(options, rate, words, text, face, encodes_text="text" in modalities)
    return Recording(None, [Source(track)], rate, duration, face=face)


class _AudioOpener:
    """Opens a recording with audio: as one voice, by channels, or by speaker turns; see [`open_recording`]."""

    def __init__(
        self,
        processor: Any,
        item: dict[str, Any],
        modalities: Collection[str],
        text: str | None,
        word_times: Any,
        speakers: SpeakerOptions,
        options: TimelineOptions,
        transcriber: Any,
    ):
        self.processor = processor
        self.text = text
        self.word_times = word_times
        self.speakers = speakers
        self.options = options
        self.transcriber = transcriber
        self.rate = _sampling_rate(processor)
        audio = item["audio"]
        self.blocks = (
            audio if isinstance(audio, AudioBlocks) else AudioBlocks(audio, item.get("sampling_rate"), self.rate)
        )
        self.face: FaceSequence | None = item.get("video")
        self.make_track = partial(Track, sampling_rate=self.rate, encodes_text="text" in modalities, face=self.face)
        longest = processor.max_audio_samples
        if longest is not None and options.window_s * self.rate > longest:
            raise ValueError(
                f"window_s={options.window_s} exceeds the maximum of this model's feature extractor, "
                f"{longest / self.rate:g} s; shorten the window."
            )
        check_channel("The audio", self.blocks.channels, speakers.channel)

    def open(self) -> Recording:
        if self.speakers.channels:
            if self.text is not None:
                raise ValueError("A text without timestamps fits no channel; pass word_times={0: ..., 1: ...}.")
            return self._recording(self._channel_sources())
        words = read_words(self.word_times, self.text, self.blocks.duration)
        is_transcribed = self.text is None and not words and self.transcriber is not None
        if is_transcribed:
            words = self._transcribe(self.speakers.channel)
        text = None if words else self.text
        if self.speakers.speaker_turns is not None:
            if text is not None:
                raise ValueError("A text without timestamps fits no turn; pass word_times, or leave the text out.")
            return self._recording(self._turn_sources(words), has_turns=True)
        if text is not None and (self.blocks.duration is None or self.blocks.duration > self.options.window_s):
            _check_text_length(self.processor, text)
        # If the transcriber finds no words, there are no words or sentences to predict.
        is_predicted = not is_transcribed or _has_spans(self.options, words)
        track = self.make_track(self.options, words=words, text=text, yields_windows=is_predicted)
        return self._recording([Source(track, channel=self.speakers.channel)])

    def _recording(self, sources: list[Source], has_turns: bool = False) -> Recording:
        return Recording(self.blocks, sources, self.rate, self.blocks.duration, has_turns, self.face)

    def _transcribe(self, channel: int | None) -> list[Word]:
        samples = np.concatenate([to_mono(block, channel) for block in self.blocks])
        return _before_end(transcribe(self.transcriber, samples, self.rate), len(samples) / self.rate)

    def _channel_sources(self) -> list[Source]:
        names = [channel_name(number) for number in range(self.blocks.channels)]
        if len(names) < 2:
            raise ValueError(
                "channels='split' needs audio of several channels; this one has 1. Leave channels out, or set "
                "speaker_turns."
            )
        selected = self.speakers.selected(names)
        by_channel = None if self.word_times is None else _by_channel(self.word_times, names)
        sources = []
        for number, name in enumerate(names):
            words = read_words((by_channel or {}).get(name), None, self.blocks.duration)
            if name in selected and by_channel is None and self.transcriber is not None:
                words = self._transcribe(number)
            # A channel may have no words; without any source of words the track raises if its options need them.
            is_known = by_channel is not None or self.transcriber is not None
            is_predicted = name in selected and (not is_known or _has_spans(self.options, words))
            track = self.make_track(self.options, words=words, yields_windows=is_predicted)
            sources.append(Source(track, name, number, is_selected=name in selected))
        return sources

    def _turn_sources(self, words: list[Word]) -> list[Source]:
        turns = read_speaker_turns(self.speakers.speaker_turns)  # type: ignore[arg-type]
        speakers = sorted({speaker for speaker, _, _ in turns})
        selected = self.speakers.selected(speakers) if len(speakers) > 1 else set(speakers)
        middles = np.array([(begin + stop) / 2 for _, begin, stop in words])
        sources = []
        for speaker, start, end in _turns_within(turns, self.blocks.duration):
            spoken = [
                (word, max(begin - start, 0.0), min(stop, end) - start)
                for word, begin, stop in (
                    words[index] for index in np.flatnonzero((middles >= start) & (middles < end))
                )
            ]
            # A turn without words has no words or sentences to predict.
            is_predicted = speaker in selected and _has_spans(self.options, spoken)
            options = self.options if is_predicted else replace(self.options, voice_activity=False)
            track = self.make_track(options, words=spoken, yields_windows=is_predicted)
            source = Source(track, speaker, self.speakers.channel, start, end, is_selected=speaker in selected)
            source.speech.append((start, end))
            source.words = [word for word, _, _ in spoken]
            sources.append(source)
        return sources


def _sampling_rate(processor: Any) -> int:
    return 16_000 if processor.feature_extractor is None else processor.feature_extractor.sampling_rate


def _check_text_length(processor: Any, text: str) -> None:
    """Raises if a text without timestamps would be truncated: every window would then see the same beginning."""
    tokens, limit = len(processor.tokenizer(text, verbose=False)["input_ids"]), processor.tokenizer.model_max_length
    if tokens > limit:
        raise ValueError(
            f"The text has {tokens} tokens and no timestamps, and a window takes {limit}, so the tokens of a window "
            "are unknown. Pass word_times, subtitles or a transcriber."
        )


def _by_channel(word_times: Any, names: list[str]) -> dict[str, Any]:
    """Returns the word times of each channel by its name."""
    named = [(channel_name(key), value) for key, value in word_times.items()] if isinstance(word_times, dict) else []
    by_channel = dict(named)
    if not isinstance(word_times, dict) or not by_channel.keys() <= set(names) or len(by_channel) < len(named):
        raise ValueError(
            "With channels='split', word_times must be a dictionary by channel, such as {0: [...], 1: [...]}, with "
            f"each of {names} at most once."
        )
    return by_channel


def read_words(word_times: Any, text: str | None, duration: float | None) -> list[Word]:
    """Returns the words with their timestamps; with a text, each word includes the punctuation after it."""
    words = [] if word_times is None else read_word_times(word_times, duration)
    if duration is not None:
        words = _before_end(words, duration)
    if words and text is not None:
        spans = locate_words([word for word, _, _ in words], text)
        # Characters without timestamps belong to the preceding word; at the beginning, to the first word.
        borders = [0, *(begin for begin, _ in spans[1:]), len(text)]
        pieces = [text[begin:stop].strip() for begin, stop in itertools.pairwise(borders)]
        words = [(piece, start, end) for piece, (_, start, end) in zip(pieces, words)]
    return words


def _before_end(words: list[Word], duration: float) -> list[Word]:
    """Moves words that start at the end of the recording a frame before it."""
    last = max(duration - FRAME_SECONDS, 0.0)
    return [(word, min(start, last), end) for word, start, end in words]


def _has_spans(options: TimelineOptions, words: list[Word]) -> bool:
    """Whether there is anything to predict with these words."""
    return bool(words) or options.granularity in ("segment", "utterance")


def _turns_within(turns: list[tuple[str, float, float]], duration: float | None) -> list[tuple[str, float, float]]:
    """
    Clips turns to the recording.

    Raises:
        ValueError: If a turn starts clearly after its end.
    """
    if duration is None:
        return turns
    for position, (speaker, start, _) in enumerate(turns):
        if start > duration + LATE_START_SECONDS:
            raise ValueError(
                f"Turn {position}, of {speaker!r}, starts at {start:g} s, but the audio lasts {duration:.2f} s; pass "
                "the turns of this recording."
            )
    return [(speaker, min(start, duration), min(end, duration)) for speaker, start, end in turns]
