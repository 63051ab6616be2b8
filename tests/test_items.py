"""Items, prepared and collated by a processor of the full package."""

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from transformers import BatchFeature

from mmemo import items
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, feature_extraction_mmemo


WAITING = [("I", 0.0, 0.1), ("am", 0.2, 0.3), ("waiting", 0.4, 0.9)]
UNKNOWN = [-1.0, -1.0]
EMPTY = ""


def test_a_prepared_item_is_immutable_and_collates_without_loading(processor, make_clip, caplog, monkeypatch):
    words = [("so ", 0, 0.3), ("happy you", 0.2, 0.9)]
    item = processor.prepare(make_clip(sampling_rate=8_000), " ", words, sampling_rate=8_000)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "text: ' ' counts as missing.",
        "1 of 2 words or phrases overlapped the next and were cut at its start.",
        "1 of 2 words or phrases ended after the audio, which lasts 0.50 s",
    ]
    assert item.text == "so happy you"
    assert item.word_spans == ((0, 2), (3, 8), (9, 12))
    np.testing.assert_allclose([times for _, *times in item.word_times], [[0, 0.2], [0.2, 0.3875], [0.3875, 0.5]])
    with pytest.raises(FrozenInstanceError):
        item.text = "sad"
    expected = processor(make_clip(sampling_rate=8_000), word_times=words, sampling_rate=8_000, return_tensors="np")
    for module in (items, feature_extraction_mmemo):
        monkeypatch.setattr(module, "load_audio", None)
    monkeypatch.setattr(items, "locate_words", None)
    inputs = BatchFeature(processor.collate([item]), tensor_type="np")
    assert inputs.keys() == expected.keys()
    for name, values in inputs.items():
        np.testing.assert_array_equal(values, expected[name])


def test_truncation_is_logged(processor, caplog):
    inputs = processor(text=["so " * 70, "so", "so " * 63], return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 64)
    assert [record.getMessage() for record in caplog.records] == [
        "text[0]: truncated by 8 of 72 tokens; the limit is 64.",
        "text[2]: truncated by 1 of 65 tokens; the limit is 64.",
    ]
    assert processor(text="so sad so sad", max_length=4, return_tensors="pt")["input_ids"].shape == (1, 4)
    assert processor(text="so " * 70, truncation=False, return_tensors="pt")["input_ids"].shape == (1, 72)
    assert len(caplog.records) == 3


def test_padding_options(processor, make_clip):
    padded = processor(text="so sad", padding="max_length", max_length=9, return_tensors="np")
    assert padded["attention_mask"].tolist() == [[1] * 4 + [0] * 5]
    ragged = processor(text=["so sad", None, "so"], audio=[make_clip()] * 3, padding=False)
    assert [len(row) for row in ragged["input_ids"]] == [4, 2, 3]


def test_tokens_get_the_timestamps_of_their_words(processor):
    inputs = processor(text="I am WAITING!", word_times=WAITING, return_tensors="pt")
    assert processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == (
        ["[CLS]", "i", "am", "wait", "##ing", "!", "[SEP]"]
    )
    expected = [UNKNOWN, [0.0, 0.1], [0.2, 0.3], [0.4, 0.9], [0.4, 0.9], UNKNOWN, UNKNOWN]
    torch.testing.assert_close(inputs["token_times"], torch.tensor([expected]))


def test_timestamps_are_relative_to_the_first_frame_of_a_trimmed_clip(tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(trim_db=35.0), tokenizer, speech_padding_s=None)
    clip = np.concatenate([np.zeros(16_000, np.float32), make_clip(0.5)])
    words = [("so", 0.2, 0.3), ("sad", 1.1, 1.4)]
    inputs = processor(audio=[clip, None], text=["so sad", "so sad"], word_times=[words, words], return_tensors="pt")

    assert "start_seconds" not in inputs
    first_frame = processor.feature_extractor(clip).start_seconds[0]
    expected = torch.tensor([[0.0, 0.0], [1.1 - first_frame, 1.4 - first_frame]])
    torch.testing.assert_close(inputs["token_times"][0, 1:3], expected)
    torch.testing.assert_close(inputs["token_times"][1, 1:3], torch.tensor([[0.2, 0.3], [1.1, 1.4]]))


def test_timestamps_follow_left_padding(processor):
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=["so happy", "so sad so sad", None],
        word_times=[[("happy", 1, 2)], None, WAITING[:1]],
        return_tensors="pt",
    )
    expected = [[UNKNOWN] * 4 + [[1.0, 2.0], UNKNOWN], [UNKNOWN] * 6, [UNKNOWN] * 4 + [[0.0, 0.1], UNKNOWN]]
    torch.testing.assert_close(inputs["token_times"], torch.tensor(expected))
    assert inputs["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]]


def test_blank_tokens_have_no_timestamps(byte_tokenizer):
    processor = MMEmoProcessor(tokenizer=byte_tokenizer)
    times = processor(text="hi yé", word_times=[("hi", 0, 1), ("yé", 2, 3)], return_tensors="pt")["token_times"]
    assert times.tolist() == [[[0, 1], [0, 1], UNKNOWN, [2, 3], [2, 3], [2, 3]]]


def test_truncation_keeps_timestamps_aligned(processor):
    inputs = processor(text="I am waiting", word_times=WAITING, max_length=4, return_tensors="pt")
    torch.testing.assert_close(inputs["token_times"], torch.tensor([[UNKNOWN, [0.0, 0.1], [0.2, 0.3], UNKNOWN]]))


@pytest.mark.parametrize(
    ("text", "words", "starts"),
    [
        ("so so", ["so", "so"], [1, 2]),  # each after the previous word
        ("sad.", ["SAD"], [1, None]),  # the case is ignored
        ("i am  so", ["am so"], [None, 1, 1.5]),  # a phrase is split into its words
        ("not so", ["so"], [None, 1]),  # words of the text may lack timestamps
        ("not iso i", ["i"], [None, None, 1]),  # a whole word takes precedence over part of a word
        ("iso i", ["i", "so"], [1, None]),  # but the next characters take precedence over both
        ("iso", ["so"], [1]),  # part of a word, if there is nothing else
    ],
)
def test_words_are_matched_in_order(processor, text, words, starts):
    word_times = [(word, position, position + 1) for position, word in enumerate(words, start=1)]
    times = processor(text=text, word_times=word_times, return_tensors="pt")["token_times"]
    assert times[0, 1:-1, 0].tolist() == [-1.0 if start is None else float(start) for start in starts]


@pytest.mark.parametrize("text", [float("nan"), np.float32("nan"), pd.NA, EMPTY, " \n", "\u200b\ufeff"])
def test_a_text_without_words_counts_as_missing(processor, make_clip, caplog, text):
    item = processor.prepare(make_clip(), text)
    assert item.text is None and item.audio is not None
    expected = [] if text is EMPTY else [True]
    assert ["counts as missing" in record.getMessage() for record in caplog.records] == expected
    with pytest.raises(ValueError, match="both missing"):
        processor.prepare(None, text)
    if not isinstance(text, str):
        assert processor.prepare(text, "so sad").audio is None
        assert processor.prepare(None, "so sad", text).word_times == ()


def test_a_clip_is_cut_to_its_speech_and_its_words_move_with_it(processor, example_audio):
    processor.speech_padding_s = 0.4
    speech, rate = soundfile.read(example_audio, dtype="float32")
    padded = np.concatenate([np.zeros(10 * rate, np.float32), speech])
    item, expected = (
        processor.prepare(clip, None, [("so", start, start + 0.2), ("sad", start + 0.5, start + 0.9)])
        for clip, start in ((padded, 10.8), (speech, 0.8))
    )
    np.testing.assert_array_equal(item.audio, expected.audio)
    np.testing.assert_allclose(
        [times for _, *times in item.word_times], [times for _, *times in expected.word_times], atol=1e-4
    )
    # A window of a timeline is encoded as it is.
    assert len(processor.prepare(padded, segment_times=[(0.0, 0.5)]).audio) == len(padded)


def test_audio_without_speech_is_encoded_whole(processor, make_clip):
    processor.speech_padding_s = 0.4
    clip = make_clip(1.0)
    for text in (None, "so sad"):
        item = processor.prepare(clip, text)
        assert not item.has_speech
        np.testing.assert_array_equal(item.audio, clip)


def test_a_token_of_two_words_spans_both(processor):
    words = [("i", 1, 2), ("so", 3, 4), ("sad", 5, 6)]
    times = processor(text="iso sad", word_times=words, return_tensors="pt")["token_times"]
    assert times[0, 1:3].tolist() == [[1, 4], [5, 6]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": ["so", None]}, r"audio\[1\] and text\[1\] are both missing"),
        ({"text": ["so", " \t"]}, r"audio\[1\] and text\[1\] are both missing.*blank text counts as missing"),
        ({"text": ["so", 3]}, r"text\[1\]: expected a str, word times or None, got int"),
        ({"text": ["so", [("so", 2, 1)]]}, r"text\[1\]: word 0, 'so', has start=2 and end=1"),
        (
            {"text": [[("so", 0, 1)]], "word_times": [[("so", 0, 1)]]},
            r"text\[0\] and word_times\[0\] both contain word timestamps; pass a plain str as text",
        ),
        (
            {"audio": np.sin(np.arange(16_000)), "word_times": [("so", 1000, 2000)]},
            r"word_times\[0\]: word 0, 'so', starts at 1000.00 s, but the audio lasts 1.00 s.* in ms",
        ),
        ({"text": ["so", "so"], "audio": [None, "no_such.wav"]}, r"audio\[1\]: Cannot read no_such.wav"),
        ({"text": ["so", "so"], "audio": [None, np.full(9, np.nan)]}, r"audio\[1\]: .*NaN"),
        (
            {"text": "so", "audio": np.sin(np.arange(639))},
            r"audio\[0\]: the clip lasts 0.0399 s, but at least 0.04 s are needed",
        ),
        ({"text": "so", "audio": np.ones(99), "sampling_rate": 0}, r"audio\[0\]: .*sampling_rate=0"),
        ({"text": "so", "audio": np.ones(99), "channel": 1}, r"audio\[0\]: .*channel=1"),
        ({"text": "so", "word_times": [("so", 0)]}, r"word_times\[0\]: word 0 is \('so', 0\)"),
        ({"text": "so", "word_times": [{"text": "so"}]}, r"word_times\[0\]: None of the words has a timestamp: 'so'"),
        ({"text": "so", "word_times": [(" ", 0, 1)]}, r"word 0 is ' '; expected a str"),
        ({"text": "so", "word_times": [("so", None, 0)]}, r"word 0, 'so', has start=None and end=0"),
        ({"text": "so", "word_times": [("so", -1, 1)]}, r"word 0, 'so', has start=-1 and end=1"),
        ({"text": "so", "word_times": [("so", 2, 1)]}, r"word 0, 'so', has start=2 and end=1"),
        ({"text": "so", "word_times": [("so", 0, float("inf"))]}, r"word 0, 'so', has start=0 and end=inf"),
        ({"text": "so", "word_times": [("so", float("nan"), 1)]}, r"word 0, 'so', has start=nan and end=1"),
        (
            {"text": ["so", "so sad"], "word_times": [None, [("sad", 0, 1), ("so", 1, 2)]]},
            r"word_times\[1\]: word 1, 'so', does not occur in the text after the previous words",
        ),
        ({"text": "so \ud83d"}, r"text\[0\]: 'so \\ud83d' is not Unicode text: character 3"),
        ({"word_times": [("\udcff", 0, 1)]}, r"text\[0\]: '\\udcff' is not Unicode text"),
        (
            {"text": "so happy", "word_times": 3},
            r"word_times\[0\]: expected a list of \(word, start, end\) .*; got int",
        ),
    ],
)
def test_invalid_items_raise_with_their_position(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)
