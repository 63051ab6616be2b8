"""
A recording on its way through the model: who is heard in it, read once, block by block.

Deliberate choices:
- However many channels or turns it has, a recording is read once, and never held whole.
- Who works in a call is not judged unless somebody says so: only the customer's emotions are asked for.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from mmemo.audio.loading import AudioBlocks, AudioInput, check_channel, to_mono
from mmemo.timeline.speaker_turns import SpeakerTurns, read_speaker_turns
from mmemo.timeline.track import Track
from mmemo.timeline.windows import FRAME_SECONDS, Span, TimelineOptions, Window, Word
from mmemo.words.times import (
    LATE_START_SECONDS,
    WordTimes,
    clip_word_times,
    is_subtitles,
    locate_words,
    read_word_times,
)


@dataclass
class Source:
    """A voice in a recording: the whole of it, one of its channels, or a turn of one of its speakers.

    Args:
        track ([`Track`]): What hears it.
        speaker (`str`, *optional*): Whose voice it is.
        channel (`int`, *optional*): The channel it is on; the mean of all by default.
        start, end (`float`): Where it lies in the recording, in seconds; the spans are shifted accordingly.
        is_asked_for (`bool`): Whether its emotions are; of others it is only known when they speak.
        spans (`list[Span]`), speech (`list[tuple[float, float]]`): What was found, in seconds of the recording.
        words (`list[str]`): What a turn says.
    """

    track: Track
    speaker: str | None = None
    channel: int | None = None
    start: float = 0.0
    end: float = math.inf
    is_asked_for: bool = True
    spans: list[Span] = field(default_factory=list)
    speech: list[tuple[float, float]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    is_finished: bool = False

    def collect(self) -> None:
        """Takes over what its track has finished."""
        for span in self.track.pop():
            span.start, span.end = span.start + self.start, span.end + self.start
            self.spans.append(span)
        speech = [(start + self.start, end + self.start) for start, end in self.track.pop_speech()]
        if self.end == math.inf:  # a turn itself says when its speaker talks
            self.speech += speech


class Recording:
    """
    Reads a recording once and cuts all its sources into windows; iterating gives them in order.

    Args:
        blocks (`Iterable` of `np.ndarray` of shape `(channels, samples)`, *optional*): The audio, piece by piece.
        sources (`list[Source]`): Who is heard in it.
        sampling_rate (`int`): Of the audio, in Hz.
        duration (`float`, *optional*): In seconds, as far as it is known before: of a recording without audio always.
        has_turns (`bool`, *optional*, defaults to `False`): Whether each source is a turn.
    """

    def __init__(
        self,
        blocks: Iterable[np.ndarray] | None,
        sources: list[Source],
        sampling_rate: int,
        duration: float | None = None,
        has_turns: bool = False,
    ):
        self.blocks = blocks
        self.sources = sources
        self.sampling_rate = sampling_rate
        self.expected_duration = duration
        self.has_turns = has_turns
        self.duration = 0.0

    def __iter__(self) -> Iterator[Window]:
        if self.blocks is None:
            self.duration = self.expected_duration or 0.0
            for source in self.sources:
                yield from source.track.advance(self.duration)
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
        for source in self.sources:
            if not source.is_finished:
                yield from self._finish(source)

    def collect(self) -> None:
        """Has the sources take over what is finished; to be called once more when the last window is answered."""
        for source in self.sources:
            source.collect()

    def _feed(self, source: Source, samples: np.ndarray, first: int) -> Iterator[Window]:
        """Hands a source its part of the samples, which begin at sample `first` of the recording."""
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
    audio: AudioInput | None = None,
    text: Any = None,
    word_times: WordTimes | dict[int, WordTimes] | None = None,
    sampling_rate: float | None = None,
    channel: int | None = None,
    channels: str | None = None,
    speaker_turns: SpeakerTurns | None = None,
    customer: int | str | None = None,
    everyone: bool = False,
    transcriber: Any = None,
    context: Any = None,
    speaker: str | None = None,
    **cutting: Any,
) -> Recording:
    """
    Opens a recording, or a text with times, and cuts it into windows.

    Args:
        processor ([`MMEmoProcessor`]): Of the model that is to hear it.
        audio, text, word_times, sampling_rate, channel: See [`MMEmoProcessor.__call__`]; of one item. With
            `channels="split"`, `word_times` is a dictionary of them by channel.
        channels (`str`, *optional*): `"split"` hears each channel apart.
        speaker_turns (`SpeakerTurns`, *optional*): Who speaks when; each turn is heard apart.
        customer (`int` or `str`, *optional*): The channel or speaker whose emotions are asked for.
        everyone (`bool`, *optional*, defaults to `False`): Whether everyone's emotions are asked for.
        transcriber: What finds the words if there are none; see [`MMEmoProcessor.transcribe`].
        context, speaker: Refused: they belong to one text, and a recording has many.
        cutting: How it is cut; see [`TimelineOptions`].

    Raises:
        ValueError: If anything is refused, or contradicts something else.
    """
    for name, given in (("context", context), ("speaker", speaker)):
        if given:
            raise ValueError(
                f"{name}={given!r} is about one text, and a timeline answers for many; leave {name} out, or ask for "
                "one answer."
            )
    options = TimelineOptions(**cutting)
    _refuse_contradictions(channel, channels, speaker_turns, customer, everyone)
    rate = 16_000 if processor.feature_extractor is None else processor.feature_extractor.sampling_rate
    if text is not None and (not isinstance(text, str) or is_subtitles(text)):
        if word_times is not None:
            raise ValueError("text holds times, and word_times is given too; pass one of them.")
        text, word_times = None, text
    text = text if text and text.strip() else None
    reads = processor.tokenizer is not None
    if text is not None and not reads:
        raise ValueError(
            "This processor has no tokenizer and takes no text; pass audio, or word_times to place spans."
        )
    if audio is None:
        if channels or speaker_turns is not None:
            raise ValueError("Channels and speaker turns are parts of an audio, and there is none; pass audio.")
        words = _read_words(word_times, text, None)
        if not words or not reads:
            raise ValueError("A timeline needs audio, or words with their times; pass audio, word_times or subtitles.")
        # A last word of no length is said for a frame.
        duration = max(words[-1][2], words[-1][1] + FRAME_SECONDS)
        return Recording(None, [Source(Track(replace(options, voice_activity=False), rate, words))], rate, duration)

    blocks = AudioBlocks(audio, sampling_rate, rate)
    longest = processor.max_audio_samples
    if longest is not None and options.window_s * rate > longest:
        raise ValueError(
            f"window_s={options.window_s} is more than this model's feature extractor takes, {longest / rate:g} s; "
            "shorten the window."
        )
    check_channel("The audio", blocks.channels, channel)
    make_track = partial(Track, sampling_rate=rate, reads=reads)
    transcribed = None if transcriber is None else partial(_transcribe, processor, transcriber, blocks)
    if channels:
        if text is not None:
            raise ValueError("A text without times belongs to no channel; pass word_times={0: ..., 1: ...}.")
        sources = _channel_sources(blocks, word_times, customer, everyone, transcribed, options, make_track)
        return Recording(blocks, sources, rate, blocks.duration)
    words = _read_words(word_times, text, blocks.duration)
    transcribes = text is None and not words and transcribed is not None
    if transcribed is not None and transcribes:
        words = transcribed(channel)
    text = None if words else text
    if speaker_turns is not None:
        if text is not None:
            raise ValueError("A text without times belongs to no turn; pass word_times, or leave the text out.")
        turns = read_speaker_turns(speaker_turns)
        sources = _turn_sources(turns, words, customer, everyone, options, make_track, channel, blocks.duration)
        return Recording(blocks, sources, rate, blocks.duration, has_turns=True)
    if text is not None and (blocks.duration is None or blocks.duration > options.window_s):
        _refuse_long_text(processor, text)
    # Where a transcriber hears no words, there are none to answer for.
    answers = not transcribes or _has_spans(options, words)
    track = make_track(options, words=words, text=text, answers=answers)
    return Recording(blocks, [Source(track, channel=channel)], rate, blocks.duration)


def _refuse_contradictions(channel, channels, speaker_turns, customer, everyone) -> None:
    if channels not in (None, "split"):
        raise ValueError(f"channels={channels!r} is unknown; pass 'split', or channel= for one of them.")
    if channels and (speaker_turns is not None or channel is not None):
        raise ValueError("channels='split' hears every channel apart; leave channel= and speaker_turns= out.")
    if channels is None and speaker_turns is None and (customer is not None or everyone):
        raise ValueError("customer= and everyone= choose among speakers; pass channels='split' or speaker_turns= too.")
    if customer is not None and everyone:
        raise ValueError(f"customer={customer!r} contradicts everyone=True; pass one of them.")


def _refuse_long_text(processor: Any, text: str) -> None:
    """Refuses a text that would be cut, and of which every window would then hear the same beginning."""
    tokens, limit = len(processor.tokenizer(text, verbose=False)["input_ids"]), processor.tokenizer.model_max_length
    if tokens > limit:
        raise ValueError(
            f"The text has {tokens} tokens and no times, and a window takes {limit}: which of them are said in it is "
            "not known. Pass word_times, subtitles or a transcriber."
        )


def _read_words(word_times: Any, text: str | None, duration: float | None) -> list[Word]:
    """The words with their times; of a text that is given too, each with the punctuation behind it."""
    words = [] if word_times is None else read_word_times(word_times)
    if duration is not None:
        words = _within(words, duration)
    if words and text is not None:
        spans = locate_words([word for word, _, _ in words], text)
        # What has no time of its own belongs to the word before it, and to the first word at the beginning.
        borders = [0, *(begin for begin, _ in spans[1:]), len(text)]
        pieces = [text[begin:stop].strip() for begin, stop in itertools.pairwise(borders)]
        words = [(piece, start, end) for piece, (_, start, end) in zip(pieces, words)]
    return words


def _transcribe(processor: Any, transcriber: Any, blocks: AudioBlocks, channel: int | None) -> list[Word]:
    rate = processor.feature_extractor.sampling_rate
    samples = np.concatenate([to_mono(block, channel) for block in blocks])
    return _within(processor.transcribe(transcriber, samples, rate), len(samples) / rate)


def _within(words: list[Word], duration: float) -> list[Word]:
    """The words, those that begin as the recording ends a frame before it, so that they are heard."""
    last = max(duration - FRAME_SECONDS, 0.0)
    return [(word, min(start, last), end) for word, start, end in clip_word_times(words, duration)]


def _has_spans(options: TimelineOptions, words: list[Word]) -> bool:
    """Whether there is something to answer for, with these words."""
    return bool(words) or options.granularity in ("segment", "utterance")


def _asked_for(speakers: list, customer: int | str | None, everyone: bool, kind: str) -> set:
    """The speakers whose emotions are asked for."""
    if everyone:
        return set(speakers)
    if customer is None:
        raise ValueError(
            f"Whose emotions are to be told? Pass customer=, the {kind} of the customer, one of {speakers}. "
            "everyone=True asks for all; inferring the emotions of people at work is prohibited in the European Union "
            "(AI Act, Art. 5(1)(f))."
        )
    if customer not in speakers:
        raise ValueError(f"customer={customer!r} is no {kind} of this recording; it has {speakers}.")
    return {customer}


def _channel_sources(
    blocks: AudioBlocks,
    word_times: Any,
    customer: int | str | None,
    everyone: bool,
    transcribed: Callable[[int], list[Word]] | None,
    options: TimelineOptions,
    make_track: Callable[..., Track],
) -> list[Source]:
    numbers = list(range(blocks.channels))
    if len(numbers) < 2:
        raise ValueError("channels='split' needs audio of several channels; this one has 1. Leave channels= out.")
    asked = _asked_for(numbers, customer, everyone, "channel")
    if word_times is not None and not (isinstance(word_times, dict) and set(word_times) <= set(numbers)):
        raise ValueError(
            f"With channels='split', word_times must be a dictionary by channel, such as {{0: [...], 1: [...]}}, of "
            f"channels among {numbers}."
        )
    sources = []
    for number in numbers:
        words = _read_words((word_times or {}).get(number), None, blocks.duration)
        if number in asked and word_times is None and transcribed is not None:
            words = transcribed(number)
        # Nobody may say a word on a channel; without any words at all the track refuses what asks for them.
        is_known = word_times is not None or transcribed is not None
        answers = number in asked and (not is_known or _has_spans(options, words))
        track = make_track(options, words=words, answers=answers)
        sources.append(Source(track, f"channel_{number}", number, is_asked_for=number in asked))
    return sources


def _turn_sources(
    turns: list[tuple[str, float, float]],
    words: list[Word],
    customer: int | str | None,
    everyone: bool,
    options: TimelineOptions,
    make_track: Callable[..., Track],
    channel: int | None,
    duration: float | None,
) -> list[Source]:
    speakers = sorted({speaker for speaker, _, _ in turns})
    asked = _asked_for(speakers, customer, everyone, "speaker") if len(speakers) > 1 else set(speakers)
    sources = []
    middles = np.array([(begin + stop) / 2 for _, begin, stop in words])
    for speaker, start, end in _turns_within(turns, duration):
        said = [
            (word, max(begin - start, 0.0), min(stop, end) - start)
            for word, begin, stop in (words[index] for index in np.flatnonzero((middles >= start) & (middles < end)))
        ]
        # A turn without words has none to answer for.
        answers = speaker in asked and _has_spans(options, said)
        listening = options if answers else replace(options, voice_activity=False)
        track = make_track(listening, words=said, answers=answers)
        source = Source(track, speaker, channel, start, end, is_asked_for=speaker in asked)
        source.speech.append((start, end))
        source.words = [word for word, _, _ in said]
        sources.append(source)
    return sources


def _turns_within(turns: list[tuple[str, float, float]], duration: float | None) -> list[tuple[str, float, float]]:
    """The turns, cut where the recording ends.

    Raises:
        ValueError: If one begins clearly behind it.
    """
    if duration is None:
        return turns
    for position, (speaker, start, _) in enumerate(turns):
        if start > duration + LATE_START_SECONDS:
            raise ValueError(
                f"Turn {position}, of {speaker!r}, starts at {start:g} s, but the audio lasts {duration:.2f} s; are "
                "the turns of another recording?"
            )
    return [(speaker, min(start, duration), min(end, duration)) for speaker, start, end in turns]
