from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    AutoProcessor,
    BatchFeature,
    CanineTokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from mmemo import items
from modeling_mmemo import MMEmoConfig, MMEmoFeatureExtractor, MMEmoProcessor, feature_extraction_mmemo


WAITING = [("I", 0.0, 0.1), ("am", 0.2, 0.3), ("waiting", 0.4, 0.9)]
UNKNOWN = [-1.0, -1.0]
EXTRACTORS = {
    "mmemo": MMEmoFeatureExtractor,
    "librosa": lambda: MMEmoFeatureExtractor("librosa"),
    "whisper": WhisperFeatureExtractor,
    "wav2vec2": Wav2Vec2FeatureExtractor,
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=64),
}


@pytest.fixture(params=EXTRACTORS)
def any_processor(request, tokenizer):
    return MMEmoProcessor(EXTRACTORS[request.param](), tokenizer)


def test_audio_and_text_give_all_inputs_of_the_model(processor, make_clip):
    inputs = processor(audio=make_clip(0.5), text="I am happy", word_times=[("happy", 0, 0.5)], return_tensors="pt")
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "input_features": ((1, 16, 50), torch.float32),
        "audio_attention_mask": ((1, 50), torch.int64),
        "input_ids": ((1, 5), torch.int64),
        "attention_mask": ((1, 5), torch.int64),
        "token_times": ((1, 5, 2), torch.float32),
    }
    assert list(inputs) == processor.model_input_names


def test_an_absent_modality_is_left_out(processor, make_clip):
    assert list(processor(audio=make_clip())) == ["input_features", "audio_attention_mask"]
    assert list(processor(text="so sad")) == ["input_ids", "attention_mask"]
    assert list(processor(audio=[make_clip(), None], text=[None, "so sad"])) == [
        "input_features",
        "audio_attention_mask",
        "input_ids",
        "attention_mask",
    ]


def test_missing_rows_are_zero_under_a_zero_mask(any_processor, make_clip):
    clips = [None, make_clip(0.3, 1), None, make_clip(0.5, 2)]
    inputs = any_processor(audio=clips, text=["I am", None, "so happy !", "  "], return_tensors="pt")
    name = any_processor.model_input_names[0]
    assert inputs["audio_attention_mask"].any(dim=1).tolist() == [False, True, False, True]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0] * 5, [1] * 5, [0] * 5]
    assert inputs[name][[0, 2]].abs().max() == 0
    assert inputs["input_ids"][[1, 3]].eq(any_processor.tokenizer.pad_token_id).all()


def test_a_clip_has_the_same_features_alone_and_in_a_batch(any_processor, make_clip):
    clips = [make_clip(0.5, 1), None, make_clip(0.3, 2)]
    name = any_processor.model_input_names[0]
    batch = any_processor(audio=clips, text=["so sad"] * 3, return_tensors="pt")
    for row in (0, 2):
        alone = any_processor(audio=clips[row], return_tensors="pt")
        length = alone["audio_attention_mask"].sum()
        assert batch["audio_attention_mask"][row].sum() == length > 0
        time_last = batch[name].dim() == 3 and batch[name].shape[1] != batch["audio_attention_mask"].shape[1]
        cut = (Ellipsis, slice(length)) if time_last else slice(length)
        torch.testing.assert_close(batch[name][row][cut], alone[name][0][cut], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["whisper", "ast"])
def test_extractors_of_one_length_always_give_it(kind, tokenizer, make_clip):
    extractor = EXTRACTORS[kind]()
    frames = {"whisper": (80, 3000), "ast": (1024, 64)}[kind]
    inputs = MMEmoProcessor(extractor, tokenizer)(audio=make_clip(1), return_tensors="pt")
    assert inputs[extractor.model_input_names[0]].shape == (1, *frames)
    assert inputs["audio_attention_mask"].sum() == {"whisper": 100, "ast": 1024}[kind]


@pytest.mark.parametrize(("kind", "samples"), [("whisper", 480_000), ("ast", 164_239)])
def test_extractors_of_one_length_refuse_what_they_would_cut(kind, samples, make_clip):
    processor = MMEmoProcessor(EXTRACTORS[kind]())
    clip = make_clip(31)
    processor(audio=clip[:samples])
    with pytest.raises(ValueError, match=r"audio\[1\]: the clip lasts .* takes at most .*mmemo_audio"):
        processor(audio=[clip[:100_000], clip[: samples + 1]])


def test_the_limit_of_ast_is_its_last_frame(make_clip):
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=10, do_normalize=False)
    longest = MMEmoProcessor(extractor).max_audio_samples
    extractor.max_length = 12
    for samples, frames in ((longest, 10), (longest + 1, 11)):
        features = extractor(make_clip(1)[:samples], sampling_rate=16_000)["input_values"][0]
        assert np.abs(features).any(axis=1).sum() == frames


def test_every_form_of_audio_is_the_same_clip(processor, audio_forms):
    clip = audio_forms["array"]
    forms = {**audio_forms, "floats": clip.tolist()}
    expected = processor(audio=clip, return_tensors="pt")["input_features"]
    for name, form in forms.items():
        features = processor(audio=form, return_tensors="pt")["input_features"]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0, msg=name)
    batch = processor(audio=list(forms.values()), return_tensors="pt")["input_features"]
    torch.testing.assert_close(batch, expected.expand_as(batch), atol=1e-5, rtol=0)


def test_audio_of_any_rate_comes_to_the_extractor_at_its_own(tokenizer, make_clip):
    processor = MMEmoProcessor(Wav2Vec2FeatureExtractor(sampling_rate=8_000, do_normalize=False), tokenizer)
    resampled = processor(audio=make_clip(0.5, sampling_rate=44_100), sampling_rate=44_100, return_tensors="pt")
    expected = torch.tensor(make_clip(0.5, sampling_rate=8_000))
    assert resampled["input_values"].shape == (1, 4_000)
    middle = slice(200, -200)
    torch.testing.assert_close(resampled["input_values"][0, middle], expected[middle], atol=1e-3, rtol=0)


def test_channel_takes_one_channel(processor, make_clip):
    stereo = np.stack([make_clip(seed=1), make_clip(seed=2)])
    taken = processor(audio=[stereo], channel=1, return_tensors="pt")["input_features"]
    torch.testing.assert_close(taken, processor(audio=stereo[1], return_tensors="pt")["input_features"])


def test_audio_kwargs_reach_the_extractor(processor, make_clip):
    inputs = processor(audio=make_clip(0.5), audio_kwargs={"pad_to_multiple_of": 64}, return_tensors="np")
    assert inputs["input_features"].shape == (1, 16, 64)
    assert inputs["audio_attention_mask"].sum() == 50


def test_prepare_returns_an_immutable_item_that_collates_as_it_is(processor, make_clip, caplog, monkeypatch):
    words = [("so ", 0, 0.3), ("happy you", 0.2, 0.9)]
    item = processor.prepare(make_clip(sampling_rate=8_000), " ", words, sampling_rate=8_000)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "1 of 2 words or phrases overlapped the next",
        "2 of 3 words ended after the audio, which lasts 0.50 s",
    ]
    assert item.text == "so happy you"
    assert item.word_spans == ((0, 2), (3, 8), (9, 12))
    np.testing.assert_allclose([times for _, *times in item.word_times], [[0, 0.2], [0.2, 0.5], [0.5, 0.5]])
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


def test_text_kwargs_and_common_kwargs_override_the_arguments(processor):
    inputs = processor(
        text="so sad",
        padding=False,
        text_kwargs={"padding": "max_length", "max_length": 9},
        common_kwargs={"return_tensors": "np"},
    )
    assert inputs["input_ids"].shape == (1, 9)
    for name, valid in (("text_kwargs", "padding"), ("common_kwargs", "return_tensors")):
        with pytest.raises(ValueError, match=rf"{name} has unknown keys \['pad'\]; valid keys are \['{valid}'"):
            processor(text="so", **{name: {"pad": True}})


TIMED_FORMS = {
    "tuples": [("so", 0.1, 0.2), ("sad", 0.3, 0.4)],
    "chunks": [{"text": "so", "timestamp": (0.1, 0.2)}, {"text": "sad", "timestamp": (0.3, 0.4)}],
    "asr": {
        "text": "so sad",
        "chunks": [{"text": "so", "timestamp": (0.1, 0.2)}, {"text": "sad", "timestamp": (0.3, 0.4)}],
    },
    "srt": "1\n00:00:00,100 --> 00:00:00,200\nso\n\n2\n00:00:00,300 --> 00:00:00,400\nsad\n",
    "vtt": "WEBVTT\n\n00:00.100 --> 00:00.200\nso\n\n00:00.300 --> 00:00.400\nsad\n",
}


@pytest.fixture(params=[*TIMED_FORMS, "path"])
def timed(request, tmp_path):
    """The same two words in every form."""
    if request.param != "path":
        return TIMED_FORMS[request.param]
    path = tmp_path / "call.srt"
    path.write_text(TIMED_FORMS["srt"])
    return path


@pytest.mark.parametrize("name", ["word_times", "text"])
def test_timed_words_come_in_any_form_alone_and_in_a_batch(processor, make_clip, timed, name):
    expected = processor(text=["so sad"], word_times=[TIMED_FORMS["tuples"]], return_tensors="pt")
    assert expected["token_times"][0, 1:3].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    alone = processor(**{name: timed}, return_tensors="pt")
    assert alone.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(alone[key], expected[key])
    for batch in ([timed, None], [None, timed]):
        inputs = processor(audio=[make_clip()] * 2, **{name: batch}, return_tensors="pt")
        row = batch.index(timed)
        torch.testing.assert_close(inputs["token_times"][row], expected["token_times"][0])
        assert inputs["attention_mask"].any(dim=1).tolist() == [row == 0, row == 1]


def test_texts_with_and_without_times_share_a_batch(processor):
    inputs = processor(text=["so sad", TIMED_FORMS["srt"], TIMED_FORMS["tuples"], "call.srt"], return_tensors="pt")
    assert (inputs["token_times"] >= 0).any(dim=(1, 2)).tolist() == [False, True, True, False]


def test_texts_are_truncated_aloud(processor, caplog):
    inputs = processor(text=["so " * 70, "so", "so " * 63], return_tensors="pt")
    assert inputs["input_ids"].shape == (3, 64)
    assert [record.getMessage() for record in caplog.records] == [
        "text[0]: truncated by 8 of 72 tokens; the limit is 64.",
        "text[2]: truncated by 1 of 65 tokens; the limit is 64.",
    ]
    assert processor(text="so sad so sad", max_length=4, return_tensors="pt")["input_ids"].shape == (1, 4)
    assert processor(text="so " * 70, truncation=False, return_tensors="pt")["input_ids"].shape == (1, 72)
    assert len(caplog.records) == 3


def test_padding_to_a_length(processor, make_clip):
    padded = processor(text="so sad", padding="max_length", max_length=9, return_tensors="np")
    assert padded["attention_mask"].tolist() == [[1] * 4 + [0] * 5]
    ragged = processor(text=["so sad", None, "so"], audio=[make_clip()] * 3, padding=False)
    assert [len(row) for row in ragged["input_ids"]] == [4, 2, 3]


def test_a_tokenizer_without_padding_token_pads_with_its_end_token(byte_tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(), byte_tokenizer)
    inputs = processor(text=["hi you", "hi", None], audio=[make_clip()] * 3, return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [6, 2, 0]
    assert inputs["input_ids"][2].tolist() == [byte_tokenizer.eos_token_id] * 6
    assert processor.decode(inputs["input_ids"][0]) == "hi you"
    assert processor.batch_decode(inputs["input_ids"], skip_special_tokens=True) == ["hi you", "hi", ""]
    byte_tokenizer.pad_token = byte_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad_token nor an eos_token"):
        MMEmoProcessor(tokenizer=byte_tokenizer)


def test_tokens_get_the_times_of_their_words(processor):
    inputs = processor(text="I am WAITING!", word_times=WAITING, return_tensors="pt")
    assert processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]) == (
        ["[CLS]", "i", "am", "wait", "##ing", "!", "[SEP]"]
    )
    expected = [UNKNOWN, [0.0, 0.1], [0.2, 0.3], [0.4, 0.9], [0.4, 0.9], UNKNOWN, UNKNOWN]
    torch.testing.assert_close(inputs["token_times"], torch.tensor([expected]))


def test_times_count_from_where_a_trimmed_clip_begins(tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(trim_db=35.0), tokenizer)
    clip = np.concatenate([np.zeros(16_000, np.float32), make_clip(0.5)])
    words = [("so", 0.2, 0.3), ("sad", 1.1, 1.4)]
    inputs = processor(audio=[clip, None], text=["so sad", "so sad"], word_times=[words, words], return_tensors="pt")

    assert "start_seconds" not in inputs
    begins = processor.feature_extractor(clip).start_seconds[0]
    expected = torch.tensor([[0.0, 0.0], [1.1 - begins, 1.4 - begins]])
    torch.testing.assert_close(inputs["token_times"][0, 1:3], expected)
    torch.testing.assert_close(inputs["token_times"][1, 1:3], torch.tensor([[0.2, 0.3], [1.1, 1.4]]))


def test_times_follow_the_tokens_under_left_padding(processor):
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=["so happy", "so sad so sad", None],
        word_times=[[("happy", 1, 2)], None, WAITING[:1]],
        return_tensors="pt",
    )
    expected = [[UNKNOWN] * 4 + [[1.0, 2.0], UNKNOWN], [UNKNOWN] * 6, [UNKNOWN] * 4 + [[0.0, 0.1], UNKNOWN]]
    torch.testing.assert_close(inputs["token_times"], torch.tensor(expected))
    assert inputs["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 1, 1, 1]]


def test_bytes_of_blanks_belong_to_no_word(byte_tokenizer):
    processor = MMEmoProcessor(tokenizer=byte_tokenizer)
    times = processor(text="hi yé", word_times=[("hi", 0, 1), ("yé", 2, 3)], return_tensors="pt")["token_times"]
    assert times.tolist() == [[[0, 1], [0, 1], UNKNOWN, [2, 3], [2, 3], [2, 3]]]


def test_truncation_keeps_the_times_aligned(processor):
    inputs = processor(text="I am waiting", word_times=WAITING, max_length=4, return_tensors="pt")
    torch.testing.assert_close(inputs["token_times"], torch.tensor([[UNKNOWN, [0.0, 0.1], [0.2, 0.3], UNKNOWN]]))


@pytest.mark.parametrize(
    ("text", "words", "starts"),
    [
        ("so so", ["so", "so"], [1, 2]),  # each behind its predecessor
        ("sad.", ["SAD"], [1, None]),  # whatever the case
        ("i am  so", ["am so"], [None, 1, 1.5]),  # a phrase, by its words
        ("not so", ["so"], [None, 1]),  # words may be left out
        ("not iso i", ["i"], [None, None, 1]),  # a whole word before a part of one
        ("iso i", ["i", "so"], [1, None]),  # but first of all what comes next
        ("iso", ["so"], [1]),  # and at last a part
    ],
)
def test_words_are_found_in_their_order(processor, text, words, starts):
    word_times = [(word, position, position + 1) for position, word in enumerate(words, start=1)]
    times = processor(text=text, word_times=word_times, return_tensors="pt")["token_times"]
    assert times[0, 1:-1, 0].tolist() == [-1.0 if start is None else float(start) for start in starts]


def test_a_token_of_two_words_lasts_from_the_first_to_the_last(processor):
    times = processor(text="iso", word_times=[("i", 1, 2), ("so", 3, 4)], return_tensors="pt")["token_times"]
    assert times[0, 1].tolist() == [1, 4]


def test_chunks_of_an_asr_pipeline_are_words(processor):
    chunks = [{"text": f" {word}", "timestamp": (start, end)} for word, start, end in WAITING]
    ours, theirs = processor(word_times=WAITING), processor(word_times=chunks)
    assert ours["input_ids"] == theirs["input_ids"] == processor(text="I am waiting")["input_ids"]
    np.testing.assert_array_equal(ours["token_times"], theirs["token_times"])


def test_no_word_times_are_none(processor):
    for word_times in ([], [None], [[]]):
        assert "token_times" not in processor(text=["so sad"], word_times=word_times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "There is nothing to process; pass audio, text, or both"),
        ({"audio": [], "text": []}, "There is nothing to process"),
        ({"text": ["a", "b", "c"], "audio": [None, None]}, "Got 2 audios but 3 texts; they must match 1:1"),
        ({"text": ["a"], "word_times": [None, None]}, "Got 1 texts but 2 lists of word times"),
        ({"text": ["so", None]}, r"audio\[1\] and text\[1\] are both missing"),
        ({"text": ["so", " \t"]}, r"audio\[1\] and text\[1\] are both missing.*blank text counts as missing"),
        ({"text": ["so", 3]}, r"text\[1\]: expected a str, word times or None, got int"),
        ({"text": ["so", [("so", 2, 1)]]}, r"text\[1\]: word 0, 'so', has start=2 and end=1"),
        (
            {"text": [[("so", 0, 1)]], "word_times": [[("so", 0, 1)]]},
            r"text\[0\] and word_times\[0\] both contain word timestamps; pass a plain str as text",
        ),
        (
            {"audio": np.ones(16_000), "word_times": [("so", 1000, 2000)]},
            r"word_times\[0\]: word 0, 'so', starts at 1000.00 s, but the audio lasts 1.00 s.* in ms",
        ),
        ({"text": ["so", "so"], "audio": [None, "no_such.wav"]}, r"audio\[1\]: Cannot read no_such.wav"),
        ({"text": ["so", "so"], "audio": [None, np.full(9, np.nan)]}, r"audio\[1\]: .*NaN"),
        (
            {"text": "so", "audio": np.ones(639)},
            r"audio\[0\]: the clip lasts 0.0399 s, but at least 0.04 s are needed",
        ),
        ({"text": "so", "audio": np.ones(99), "sampling_rate": 0}, r"audio\[0\]: .*sampling_rate=0"),
        ({"text": "so", "audio": np.ones(99), "channel": 1}, r"audio\[0\]: .*channel=1"),
        ({"text": "so", "word_times": [("so", 0)]}, r"word_times\[0\]: entry 0 is \('so', 0\)"),
        ({"text": "so", "word_times": [{"text": "so"}]}, r"word_times\[0\]: entry 0 is \{'text': 'so'\}"),
        ({"text": "so", "word_times": [(" ", 0, 1)]}, r"word 0 is ' '; expected a str"),
        ({"text": "so", "word_times": [("so", 0, None)]}, r"word 0, 'so', has start=0 and end=None"),
        ({"text": "so", "word_times": [("so", -1, 1)]}, r"word 0, 'so', has start=-1 and end=1"),
        ({"text": "so", "word_times": [("so", 2, 1)]}, r"word 0, 'so', has start=2 and end=1"),
        ({"text": "so", "word_times": [("so", 0, float("inf"))]}, r"word 0, 'so', has start=0 and end=inf"),
        ({"text": "so", "word_times": [("so", float("nan"), 1)]}, r"word 0, 'so', has start=nan and end=1"),
        (
            {"text": ["so", "so sad"], "word_times": [None, [("sad", 0, 1), ("so", 1, 2)]]},
            r"word_times\[1\]: word 1, 'so', does not occur in the text after the previous words",
        ),
    ],
)
def test_bad_input_is_refused_in_words(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_word_times_need_a_tokenizer_with_offsets():
    processor = MMEmoProcessor(tokenizer=CanineTokenizer())
    assert processor(text=["so sad", "so"], return_tensors="pt")["attention_mask"].sum(dim=1).tolist() == [8, 4]
    with pytest.raises(ValueError, match=r"word_times\[0\]: CanineTokenizer .* load a fast tokenizer"):
        processor(word_times=WAITING)


def test_a_processor_of_one_modality_refuses_the_other(tokenizer, make_clip):
    with pytest.raises(ValueError, match=r"audio\[0\]: this processor has no feature extractor"):
        MMEmoProcessor(tokenizer=tokenizer)(audio=make_clip())
    with pytest.raises(ValueError, match=r"text\[0\]: this processor has no tokenizer"):
        MMEmoProcessor(MMEmoFeatureExtractor())(text="so", audio=make_clip())
    with pytest.raises(ValueError, match="needs a feature_extractor, a tokenizer, or both"):
        MMEmoProcessor()


@pytest.mark.parametrize("kind", [*EXTRACTORS, None])
@pytest.mark.parametrize("has_text", [True, False])
def test_saved_and_loaded_it_is_the_same(kind, has_text, tokenizer, make_clip, tmp_path):
    if kind is None and not has_text:
        return
    extractor = EXTRACTORS[kind]() if kind else None
    saved = MMEmoProcessor(extractor, tokenizer if has_text else None)
    saved.save_pretrained(tmp_path)
    # A processor lies beside its model.
    MMEmoConfig(audio_config={"model_type": "wav2vec2"}).save_pretrained(tmp_path)
    inputs = {"audio": make_clip()} if kind else {}
    inputs |= {"text": "I am so happy", "word_times": [("so", 0, 1)]} if has_text else {}
    for loaded in (MMEmoProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, MMEmoProcessor)
        assert type(loaded.feature_extractor) is type(extractor)
        assert (loaded.tokenizer is not None) == has_text
        expected = saved(**inputs, return_tensors="pt")
        actual = loaded(**inputs, return_tensors="pt")
        assert expected.keys() == actual.keys()
        for name in expected:
            torch.testing.assert_close(actual[name], expected[name], atol=0, rtol=0)


def test_word_times_of_another_type_are_refused(processor):
    with pytest.raises(ValueError, match=r"word_times\[0\]: expected a list of \(word, start, end\) .*; got int"):
        processor(text="so happy", word_times=3)
