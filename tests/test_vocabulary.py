"""Cutting the vocabulary of a multilingual text encoder to the tokens of some texts."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import train
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor
from modeling_mmemo.pipelines import load_pipeline
from modeling_mmemo.training.vocabulary import cut_vocabulary


PIECES = ["▁", "a", "b", "c", "d", "▁a", "ab", "▁ab", "▁cd", "▁abab", "ж"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -3.0 + len(piece)) for piece in PIECES]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=32,
    )


@pytest.fixture
def tower(tokenizer) -> BertModel:
    config = BertConfig(
        vocab_size=len(tokenizer) + 3,  # encoders pad their tables
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        pad_token_id=tokenizer.pad_token_id,
    )
    return BertModel(config).eval()


def test_texts_of_the_kept_tokens_have_the_states_of_before(tower, tokenizer):
    texts = ["abab cd", "cd"]
    before = [tower(**tokenizer(text, return_tensors="pt")).last_hidden_state for text in texts]
    cut = cut_vocabulary(tower, tokenizer, texts, 13)
    assert len(cut) == 13 == tower.get_input_embeddings().num_embeddings == tower.config.vocab_size
    for text, states in zip(texts, before):
        assert cut.tokenize(text) == tokenizer.tokenize(text)
        torch.testing.assert_close(tower(**cut(text, return_tensors="pt")).last_hidden_state, states)


def test_dropped_tokens_are_written_with_shorter_ones(tower, tokenizer):
    assert tokenizer.tokenize("abab") == ["▁abab"]
    cut = cut_vocabulary(tower, tokenizer, ["ab cd", "a b c d"], 12)
    assert "▁abab" not in cut.get_vocab()
    assert cut.unk_token not in cut.tokenize("abab")


def test_a_text_in_a_script_of_no_text_counts_as_missing(tower, tokenizer, caplog):
    """The tokens for the beginning of a word are known, and stand for no character."""
    processor = MMEmoProcessor(tokenizer=cut_vocabulary(tower, tokenizer, ["ab cd"], 13))
    assert processor.tokenizer.tokenize("жд жд") == ["▁", "жд", "▁", "жд"]

    assert not processor.has_known_tokens("жд жд")
    assert "the tokenizer knows no token of 'жд жд', so it counts as missing" in caplog.text
    assert processor.has_known_tokens("ab жд жд")
    assert "the tokenizer does not know 4 of 6 characters of 'ab жд жд'" in caplog.text
    caplog.clear()
    assert processor.has_known_tokens("ab cd ж")
    assert not caplog.text


def test_a_script_of_no_text_becomes_unknown(tower, tokenizer):
    cut = cut_vocabulary(tower, tokenizer, ["ab cd"], 13)
    assert cut.unk_token_id in cut("ж").input_ids


def test_special_tokens_and_padding_survive_saving(tower, tokenizer, tmp_path):
    cut = cut_vocabulary(tower, tokenizer, ["abab cd"], 13)
    cut.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    batch = loaded(["abab cd", "cd"], padding=True)
    assert batch == cut(["abab cd", "cd"], padding=True)
    assert batch["input_ids"][1][-1] == loaded.pad_token_id == tower.config.pad_token_id
    assert loaded.convert_ids_to_tokens(batch["input_ids"][0]) == ["<s>", "▁abab", "▁cd", "</s>"]
    assert max(loaded.get_vocab().values()) == len(loaded) - 1
    assert loaded.model_max_length == 32


@pytest.mark.parametrize("size", [3, 99])
def test_impossible_sizes_are_named(tower, tokenizer, size):
    with pytest.raises(ValueError, match=f"vocabulary_size={size} must be more than"):
        cut_vocabulary(tower, tokenizer, ["ab cd"], size)


def test_other_tokenizers_are_refused(tower):
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")))
    with pytest.raises(ValueError, match=r"needs a tokenizer with a Unigram model.*WordLevel"):
        cut_vocabulary(tower, words, ["a"], 2)


@pytest.mark.slow
def test_a_run_keeps_the_first_layers_and_the_tokens_of_its_texts(tower, tokenizer, tmp_path):
    encoder, texts, folder = tmp_path / "encoder", tmp_path / "texts.csv", tmp_path / "model"
    tower.config.num_hidden_layers = 2
    BertModel(tower.config).save_pretrained(encoder)
    tokenizer.save_pretrained(encoder)
    rows = [f"{text} {'ab ' * i},{label}" for i in range(4) for text, label in (("cd", "happy"), ("a b", "sad"))]
    texts.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    options = f"--text_encoder {encoder} --text_mode full --text_layers 1 --vocabulary_size 12 --max_steps 2"
    train.main([*options.split(), "--corpora", str(texts), "--labels", "happy", "sad", "--output_dir", str(folder)])

    config = json.loads((folder / "config.json").read_text())["text_config"]
    assert (config["num_hidden_layers"], config["vocab_size"]) == (1, 12)
    model = MMEmoForEmotionRecognition.from_pretrained(folder)
    assert model.mmemo.text_tower.get_input_embeddings().num_embeddings == 12
    emotion = load_pipeline(folder)
    assert "▁abab" not in emotion.tokenizer.get_vocab()
    assert {found["label"] for found in emotion({"text": "abab cd"})} == {"happy", "sad"}
