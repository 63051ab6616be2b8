import numpy as np
import pytest
import torch
from transformers import (
    ASTFeatureExtractor,
    AutoProcessor,
    CanineTokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from modeling_mmemo import MMEmoConfig, MMEmoFeatureExtractor, MMEmoProcessor


WAITING = [("I", 0.0, 0.1), ("am", 0.2, 0.3), ("waiting", 0.4, 0.9)]
EXTRACTORS = {
    "mmemo": MMEmoFeatureExtractor,
    "librosa": lambda: MMEmoFeatureExtractor("librosa"),
    "whisper": WhisperFeatureExtractor,
    "wav2vec2": Wav2Vec2FeatureExtractor,
    "ast": lambda: ASTFeatureExtractor(num_mel_bins=64),
}


@pytest.fixture(params=EXTRACTORS)
def any_processor(request, tokenizer):
    return MMEmoProcessor(EXTRACTORS[request.param](), tokenizer, speech_padding_s=None)


def test_audio_and_text_return_all_model_inputs(processor, make_clip):
    inputs = processor(audio=make_clip(0.5), text="I am happy", word_times=[("happy", 0, 0.5)], return_tensors="pt")
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "input_features": ((1, 16, 50), torch.float32),
        "audio_attention_mask": ((1, 50), torch.int64),
        "input_ids": ((1, 5), torch.int64),
        "attention_mask": ((1, 5), torch.int64),
        "token_times": ((1, 5, 2), torch.float32),
    }
    assert list(inputs) == processor.model_input_names


def test_a_missing_modality_is_left_out(processor, make_clip):
    assert list(processor(audio=make_clip())) == ["input_features", "audio_attention_mask"]
    assert list(processor(text="so sad")) == ["input_ids", "attention_mask"]
    assert list(processor(audio=[make_clip(), None], text=[None, "so sad"])) == [
        "input_features",
        "audio_attention_mask",
        "input_ids",
        "attention_mask",
    ]


def test_missing_rows_are_zeros_with_a_zero_mask(any_processor, make_clip):
    clips = [None, make_clip(0.3, 1), None, make_clip(0.5, 2)]
    inputs = any_processor(audio=clips, text=["I am", None, "so happy !", "  "], return_tensors="pt")
    name = any_processor.model_input_names[0]
    assert inputs["audio_attention_mask"].any(dim=1).tolist() == [False, True, False, True]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [0] * 5, [1] * 5, [0] * 5]
    assert inputs[name][[0, 2]].abs().max() == 0
    assert inputs["input_ids"][[1, 3]].eq(any_processor.tokenizer.pad_token_id).all()


def test_features_do_not_depend_on_the_batch(any_processor, make_clip):
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
def test_extractors_of_fixed_length_pad_to_it(kind, tokenizer, make_clip):
    extractor = EXTRACTORS[kind]()
    frames = {"whisper": (80, 3000), "ast": (1024, 64)}[kind]
    inputs = MMEmoProcessor(extractor, tokenizer)(audio=make_clip(1), return_tensors="pt")
    assert inputs[extractor.model_input_names[0]].shape == (1, *frames)
    assert inputs["audio_attention_mask"].sum() == {"whisper": 100, "ast": 1024}[kind]


@pytest.mark.parametrize(("kind", "samples"), [("whisper", 480_000), ("ast", 164_239)])
def test_clips_beyond_a_fixed_length_raise(kind, samples, make_clip):
    processor = MMEmoProcessor(EXTRACTORS[kind]())
    clip = make_clip(31)
    processor(audio=clip[:samples])
    with pytest.raises(ValueError, match=r"audio\[1\]: the speech of the clip lasts .* takes at most .*mmemo_audio"):
        processor(audio=[clip[:100_000], clip[: samples + 1]])


def test_max_audio_samples_of_ast_is_its_last_frame(make_clip):
    extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=10, do_normalize=False)
    longest = MMEmoProcessor(extractor).max_audio_samples
    extractor.max_length = 12
    for samples, frames in ((longest, 10), (longest + 1, 11)):
        features = extractor(make_clip(1)[:samples], sampling_rate=16_000)["input_values"][0]
        assert np.abs(features).any(axis=1).sum() == frames


def test_all_audio_forms_return_the_same_features(processor, audio_forms):
    clip = audio_forms["array"]
    forms = {**audio_forms, "floats": clip.tolist()}
    expected = processor(audio=clip, return_tensors="pt")["input_features"]
    for name, form in forms.items():
        features = processor(audio=form, return_tensors="pt")["input_features"]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=0, msg=name)
    batch = processor(audio=list(forms.values()), return_tensors="pt")["input_features"]
    torch.testing.assert_close(batch, expected.expand_as(batch), atol=1e-5, rtol=0)


def test_audio_is_resampled_to_the_extractor_rate(tokenizer, make_clip):
    processor = MMEmoProcessor(Wav2Vec2FeatureExtractor(sampling_rate=8_000, do_normalize=False), tokenizer)
    resampled = processor(audio=make_clip(0.5, sampling_rate=44_100), sampling_rate=44_100, return_tensors="pt")
    expected = torch.tensor(make_clip(0.5, sampling_rate=8_000))
    assert resampled["input_values"].shape == (1, 4_000)
    middle = slice(200, -200)
    torch.testing.assert_close(resampled["input_values"][0, middle], expected[middle], atol=1e-3, rtol=0)


def test_channel_selects_one_channel(processor, make_clip):
    stereo = np.stack([make_clip(seed=1), make_clip(seed=2)])
    selected = processor(audio=[stereo], channel=1, return_tensors="pt")["input_features"]
    torch.testing.assert_close(selected, processor(audio=stereo[1], return_tensors="pt")["input_features"])


def test_audio_kwargs_are_passed_to_the_extractor(processor, make_clip):
    inputs = processor(audio=make_clip(0.5), audio_kwargs={"pad_to_multiple_of": 64}, return_tensors="np")
    assert inputs["input_features"].shape == (1, 16, 64)
    assert inputs["audio_attention_mask"].sum() == 50


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
    """The same two words in each form of word times."""
    if request.param != "path":
        return TIMED_FORMS[request.param]
    path = tmp_path / "call.srt"
    path.write_text(TIMED_FORMS["srt"])
    return path


@pytest.mark.parametrize("name", ["word_times", "text"])
def test_all_word_time_forms_return_the_same_token_times(processor, make_clip, timed, name):
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


def test_texts_with_and_without_timestamps_share_a_batch(processor):
    inputs = processor(text=["so sad", TIMED_FORMS["srt"], TIMED_FORMS["tuples"], "call.srt"], return_tensors="pt")
    assert (inputs["token_times"] >= 0).any(dim=(1, 2)).tolist() == [False, True, True, False]


def test_padding_defaults_to_the_end_of_sequence_token(byte_tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(), byte_tokenizer)
    inputs = processor(text=["hi you", "hi", None], audio=[make_clip()] * 3, return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [6, 2, 0]
    assert inputs["input_ids"][2].tolist() == [byte_tokenizer.eos_token_id] * 6
    assert processor.decode(inputs["input_ids"][0]) == "hi you"
    assert processor.batch_decode(inputs["input_ids"], skip_special_tokens=True) == ["hi you", "hi", ""]
    byte_tokenizer.pad_token = byte_tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a pad_token nor an eos_token"):
        MMEmoProcessor(tokenizer=byte_tokenizer)


def test_asr_chunks_equal_word_tuples(processor):
    chunks = [{"text": f" {word}", "timestamp": (start, end)} for word, start, end in WAITING]
    from_tuples, from_chunks = processor(word_times=WAITING), processor(word_times=chunks)
    assert from_tuples["input_ids"] == from_chunks["input_ids"] == processor(text="I am waiting")["input_ids"]
    np.testing.assert_array_equal(from_tuples["token_times"], from_chunks["token_times"])


def test_empty_word_times_count_as_missing(processor):
    for word_times in ([], [None], [[]]):
        assert "token_times" not in processor(text=["so sad"], word_times=word_times)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "There is nothing to process; pass audio, text or video"),
        ({"audio": [], "text": []}, "There is nothing to process"),
        ({"text": ["a", "b", "c"], "audio": [None, None]}, "Got 2 audios but 3 texts; they must match 1:1"),
        ({"text": ["a"], "word_times": [None, None]}, "Got 1 texts but 2 lists of word times"),
    ],
)
def test_batches_of_different_sizes_raise(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


@pytest.mark.slow
def test_word_times_need_a_fast_tokenizer():
    processor = MMEmoProcessor(tokenizer=CanineTokenizer())
    assert processor(text=["so sad", "so"], return_tensors="pt")["attention_mask"].sum(dim=1).tolist() == [8, 4]
    with pytest.raises(ValueError, match=r"word_times\[0\]: CanineTokenizer .* load a fast tokenizer"):
        processor(word_times=WAITING)


def test_a_processor_of_one_modality_raises_for_the_other(tokenizer, make_clip):
    with pytest.raises(ValueError, match=r"audio\[0\]: this processor has no feature extractor"):
        MMEmoProcessor(tokenizer=tokenizer)(audio=make_clip())
    with pytest.raises(ValueError, match=r"text\[0\]: this processor has no tokenizer"):
        MMEmoProcessor(MMEmoFeatureExtractor())(text="so", audio=make_clip())
    with pytest.raises(ValueError, match="needs a feature_extractor, a tokenizer or"):
        MMEmoProcessor()


@pytest.mark.parametrize("kind", [*EXTRACTORS, None])
@pytest.mark.parametrize("has_text", [True, False])
def test_a_saved_processor_loads_equal(kind, has_text, tokenizer, make_clip, tmp_path):
    if kind is None and not has_text:
        return
    extractor = EXTRACTORS[kind]() if kind else None
    saved = MMEmoProcessor(extractor, tokenizer if has_text else None)
    saved.save_pretrained(tmp_path)
    # The processor is saved in the folder of its model.
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


def test_a_clip_with_its_rate_is_one_clip_in_either_order(processor, make_clip):
    clip = make_clip(0.5, sampling_rate=8_000)
    expected = processor(audio={"array": clip, "sampling_rate": 8_000}, return_tensors="np")["input_features"]
    for pair in ((8_000, clip), (clip, 8_000)):
        np.testing.assert_array_equal(processor(audio=pair, return_tensors="np")["input_features"], expected)
        features = processor.feature_extractor(pair, return_tensors="np")["input_features"]
        np.testing.assert_array_equal(features, expected)
