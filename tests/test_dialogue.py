"""Dialogue context: its input sequence, its mask, and its effect on the prediction."""

import numpy as np
import pytest
import torch
from tiny import TEXT, make_model

from mmemo import EmotionPredictor
from mmemo.words.dialogue import read_context, write_dialogue
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, load_pipeline
from modeling_mmemo.exporters.onnx_export import export_onnx


CONTEXT = [("A", "you are not happy"), {"speaker": "B", "text": "wait !"}, "so sad"]


@pytest.fixture
def tokenizer(tokenizer):
    tokenizer.add_special_tokens({"sep_token": "[SEP]"})
    return tokenizer


@pytest.fixture
def reader(tokenizer):
    """A processor that encodes up to three turns before a text."""
    return MMEmoProcessor(tokenizer=tokenizer, context_turns=3)


def words(processor, inputs, mask):
    """The tokens of one item where a mask is 1."""
    ids = torch.as_tensor(inputs["input_ids"])[torch.as_tensor(inputs[mask]).bool()]
    return processor.tokenizer.convert_ids_to_tokens(ids.tolist())


def test_every_form_of_a_turn_is_converted():
    assert read_context([*CONTEXT, "  "]) == [("A", "you are not happy"), ("B", "wait !"), (None, "so sad")]


@pytest.mark.parametrize(
    "bad", ["so sad", [3], [["A", "so sad"]], [{"speaker": "A"}], [(3, "so sad")], ["\ud83d"], [("\ud83d", "so sad")]]
)
def test_invalid_turns_raise(bad):
    with pytest.raises(ValueError, match="turn"):
        read_context(bad)


def test_the_text_has_the_last_line_and_its_position():
    dialogue = write_dialogue("Wait!", "A", [("B", "So sad.")], prompt=" It is")

    assert dialogue.whole == "[B]: So sad.\n>> [A]: Wait! It is"
    assert dialogue.whole[dialogue.line :] == "[A]: Wait! It is"
    assert dialogue.whole[dialogue.start : dialogue.end] == "Wait!"


def test_only_previous_turns_are_context(reader):
    inputs = reader(text="i am happy", context=CONTEXT, speaker="A", return_tensors="pt")

    tokens = words(reader, inputs, "context_mask")
    assert tokens[-3:] == ["so", "sad", "[SEP]"]
    own = reader.tokenizer.convert_ids_to_tokens(inputs["input_ids"][inputs["context_mask"] == 0].tolist())
    assert own[0] == "[CLS]" and own[-4:] == ["i", "am", "happy", "[SEP]"]


def test_a_text_without_dialogue_is_unchanged(reader, tokenizer):
    plain = MMEmoProcessor(tokenizer=tokenizer)(text="so sad", return_tensors="pt")
    inputs = reader(text="so sad", context=[], return_tensors="pt")

    assert {name: values.tolist() for name, values in inputs.items()} == {
        name: values.tolist() for name, values in plain.items()
    }


def test_long_dialogues_keep_the_last_turns_and_tokens(tokenizer):
    processor = MMEmoProcessor(tokenizer=tokenizer, context_turns=1, context_tokens=2)

    inputs = processor(text="so happy", context=["wait !", "i am so sad"], return_tensors="pt")

    assert words(processor, inputs, "context_mask") == ["sad", "[SEP]"]


def test_truncation_drops_context_before_text(reader, caplog):
    inputs = reader(text="i am so happy", context=["wait ! wait ! wait !"], max_length=8, return_tensors="pt")

    assert inputs["input_ids"].shape[1] == 8 and inputs["context_mask"].sum() == 2 and not caplog.records
    inputs = reader(text="i am so happy", context=["wait !"], max_length=5, return_tensors="pt")
    assert words(reader, inputs, "attention_mask") == ["[CLS]", "i", "am", "so", "[SEP]"]
    assert "truncated by 1 of 6 tokens" in caplog.text


def test_a_prompt_is_not_truncated(tokenizer):
    processor = MMEmoProcessor(tokenizer=tokenizer, prompt=" so sad")

    inputs = processor(text="i am happy you are", max_length=6, return_tensors="pt")

    assert words(processor, inputs, "attention_mask") == ["[CLS]", "i", "am", "so", "sad", "[SEP]"]


def test_words_keep_their_timestamps_after_a_dialogue(reader):
    times = [("so", 0.0, 0.5), ("sad", 0.5, 1.0)]
    inputs = reader(text="so sad", word_times=times, context=["so sad"], speaker="A", return_tensors="pt")

    timed = inputs["token_times"][0, :, 0] >= 0
    assert inputs["token_times"][0][timed].tolist() == [[0.0, 0.5], [0.5, 1.0]]
    assert not (timed & inputs["context_mask"][0].bool()).any()


def test_a_batch_may_mix_texts_with_and_without_dialogue(reader):
    inputs = reader(text=["so sad", "i am"], context=[CONTEXT, None], speaker=["A", None])

    assert [sum(row) > 0 for row in inputs["context_mask"]] == [True, False]
    with pytest.raises(ValueError, match=r"speaker\[0\]: expected a str"):
        reader(text=["so sad"], speaker=[3])
    with pytest.raises(ValueError, match=r"speaker\[0\]: '\\ud83d' is not Unicode text"):
        reader(text=["so sad"], speaker=["\ud83d"])


@pytest.mark.parametrize("given", [{"context": CONTEXT}, {"speaker": "A"}])
def test_dialogue_raises_for_models_without_context(processor, given):
    with pytest.raises(ValueError, match="takes no dialogue context"):
        processor(text="so sad", **given)


def test_context_without_text_raises(tokenizer, make_clip):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), tokenizer, context_turns=1)

    with pytest.raises(ValueError, match=r"context\[0\] needs a text"):
        processor(audio=make_clip(), context=CONTEXT)


def test_settings_are_saved(reader, tmp_path):
    reader.save_pretrained(tmp_path)

    loaded = MMEmoProcessor.from_pretrained(tmp_path)

    assert (loaded.context_turns, loaded.context_tokens, loaded.prompt) == (3, 256, "")
    with pytest.raises(ValueError, match="context_turns=-1"):
        MMEmoProcessor(tokenizer=reader.tokenizer, context_turns=-1)


def test_tokenizers_without_separator_use_the_marker(byte_tokenizer):
    processor = MMEmoProcessor(tokenizer=byte_tokenizer, context_turns=2)

    inputs = processor(text="No.", context=[("B", "Ah")], speaker="A", return_tensors="pt")

    whole = byte_tokenizer.decode(inputs["input_ids"][0])
    assert whole == "[B]: Ah\n>> [A]: No."
    assert byte_tokenizer.decode(inputs["input_ids"][inputs["context_mask"] == 1]) == "[B]: Ah\n>> "


@pytest.mark.parametrize("text", TEXT)
@torch.no_grad()
def test_context_is_attended_to_but_not_pooled(text):
    model = make_model(None, text)
    ids = torch.randint(4, 50, (1, 9), generator=torch.Generator().manual_seed(0))
    context = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0, 0]])
    changed = torch.where(context.bool(), (ids + 7) % 46 + 4, ids)

    with_context = model(input_ids=ids, context_mask=context).logits
    assert not torch.allclose(with_context, model(input_ids=changed, context_mask=context).logits)
    assert not torch.allclose(with_context, model(input_ids=ids).logits)
    # Padding on either side changes nothing.
    for side in ((2, 0), (0, 2)):
        padded = [torch.nn.functional.pad(values, side) for values in (ids, torch.ones_like(ids), context)]
        logits = model(input_ids=padded[0], attention_mask=padded[1], context_mask=padded[2]).logits
        np.testing.assert_allclose(logits.numpy(), with_context.numpy(), atol=1e-5)


@pytest.mark.parametrize("text", TEXT)
def test_encoders_do_not_cache_keys_and_values(text):
    assert not getattr(make_model(None, text).mmemo.text_tower.config, "use_cache", False)


def scores_of(results):
    assert len({tuple(entry["label"] for entry in result) for result in results}) == 1
    return [[entry["score"] for entry in result] for result in results]


def test_the_pipeline_predicts_batches_with_and_without_dialogue(model, tokenizer):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), tokenizer, context_turns=2)
    emotion = load_pipeline(model, processor=processor)
    item = {"text": "so sad", "context": CONTEXT, "speaker": "A"}
    with_context, without = emotion(item), emotion({"text": "so sad"})

    batch = emotion([item, {"text": "so sad"}], batch_size=2)
    # Sums over a padded text take another order on some CPUs.
    np.testing.assert_allclose(*scores_of([batch[0], with_context]), atol=1e-6)
    np.testing.assert_allclose(*scores_of([batch[1], without]), atol=1e-6)
    assert abs(without[0]["score"] - with_context[0]["score"]) > 1e-4
    with pytest.raises(ValueError, match="timeline"):
        emotion({**item, "word_times": [("so", 0, 1)]}, return_timeline=True)


@pytest.mark.slow
def test_pipeline_and_exported_graph_predict_the_same_with_dialogue(model, tokenizer, tmp_path):
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), tokenizer, context_turns=2)
    export_onnx(model, processor, tmp_path)
    item = {"text": "so sad", "context": CONTEXT, "speaker": "A"}
    models = [
        load_pipeline(model, processor=processor),
        load_pipeline(str(tmp_path), backend="onnx"),
        EmotionPredictor(tmp_path),
    ]

    expected, *others = scores_of([models[0](item), models[1](item), models[2](**item)])
    for scores in others:
        np.testing.assert_allclose(scores, expected, atol=1e-5)
