import pytest
import torch
from tiny import make_config, text_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from mmemo import EmotionPredictor
from modeling_mmemo import MMEmoForEmotionRecognition, MMEmoProcessor, load_pipeline
from modeling_mmemo.exporters.onnx_export import export_onnx
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.label_words import label_token_ids
from modeling_mmemo.training.training_arguments import ModelArguments


LABELS = ("angry", "happy", "sad")
PROMPT = "\nEmotion:"
TEXTS = ["I am so happy that you came!", "Leave me alone."]
FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "gemma3_text", "gpt2"]


@pytest.fixture(scope="module")
def words():
    """Byte-pair encoding trained on a few sentences, as in GPT-2: no padding token, maximum length or separator."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = [*TEXTS, *(f"{PROMPT} {word}" for word in (*LABELS, "glad", "sadly"))]
    backend.train_from_iterator(sentences * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


@pytest.fixture(scope="module", params=FAMILIES)
def language_model(request, words, tmp_path_factory):
    """The folder of a tiny causal language model with distinct likelihoods."""
    return save(request.param, words, tmp_path_factory.mktemp(request.param))


def save(family, words, folder):
    config = text_config(family)
    limit = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    config.update({"vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 0, **limit})
    if family == "gemma3_text":
        config.update({"final_logit_softcapping": 2.0})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def arguments(folder, **options):
    options = {"text_encoder": str(folder), "text_head": "label_words", "fusion_hidden_size": 16, **options}
    return ModelArguments(lora_dropout=0.0, **options)


def likelihoods(folder, texts, words):
    """Returns the logits of the language model itself for the words of the labels after each text."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [words(f" {label}")["input_ids"][0] for label in LABELS]
    rows = []
    for text in texts:
        read = words(text + PROMPT, return_tensors="pt")["input_ids"]
        rows.append(model(read).logits[0, -1, ids])
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_score_of_a_label_is_the_likelihood_of_its_word(language_model, words, side):
    model, processor, _ = build_model(arguments(language_model), LABELS)
    processor.tokenizer.padding_side = side

    inputs = processor(text=[*TEXTS, "Nobody says this."], return_tensors="pt")
    inputs["attention_mask"][2] = 0
    output = model.eval()(**inputs)

    expected = likelihoods(language_model, TEXTS, words)
    assert expected.std(dim=1).min() > 0.01
    torch.testing.assert_close(output.text_logits[:2], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.logits[:2], expected, atol=1e-4, rtol=1e-4)
    # A missing text: all labels are equally likely.
    assert torch.equal(output.logits[2], torch.zeros(3))


@torch.no_grad()
def test_prompt_follows_a_truncated_text(words, tmp_path):
    model, processor, _ = build_model(arguments(save("gpt2", words, tmp_path)), LABELS)

    inputs = processor(text="so sad " * 200, return_tensors="pt")

    assert inputs["input_ids"].shape[1] == 128
    assert words.decode(inputs["input_ids"][0]).endswith(PROMPT)
    assert model.eval()(**inputs).logits.isfinite().all()


@torch.no_grad()
def test_saved_model_predicts_the_same(language_model, tmp_path):
    model, processor, _ = build_model(arguments(language_model, context_turns=2), LABELS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    item = {"text": TEXTS[0], "context": ["You came!"]}

    loaded, reader = MMEmoForEmotionRecognition.from_pretrained(tmp_path), MMEmoProcessor.from_pretrained(tmp_path)

    assert reader.prompt == PROMPT
    inputs = reader(**{name: [value] for name, value in item.items()}, return_tensors="pt")
    assert torch.equal(loaded(**inputs).logits, model.eval()(**inputs).logits)
    assert {entry["label"] for entry in load_pipeline(str(tmp_path))(item)} == set(LABELS)


@torch.no_grad()
@pytest.mark.parametrize("fusion", ["early", "late", "cross_attention", "hybrid"])
def test_label_words_with_audio(words, encoders, tmp_path, fusion):
    alone, processor, _ = build_model(arguments(save("llama", words, tmp_path / "lm")), LABELS)
    alone.save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    inputs = processor(text=TEXTS, return_tensors="pt")

    options = {"audio_encoder": str(encoders[0]), "text_encoder": str(tmp_path / "half"), "text_head": "linear"}
    model, joined, _ = build_model(arguments(None, fusion=fusion, **options), LABELS)

    assert joined.prompt == PROMPT
    output, expected = model.eval()(**inputs), alone.eval()(**inputs).logits
    torch.testing.assert_close(output.text_logits, expected)
    if fusion in ("late", "hybrid"):
        torch.testing.assert_close(output.logits.softmax(dim=1), expected.softmax(dim=1))
    both = joined(
        audio=[torch.randn(16000).numpy()] * 2, text=[None, TEXTS[0]], sampling_rate=16000, return_tensors="pt"
    )
    assert model(**both).logits.isfinite().all()


@torch.no_grad()
def test_lora_does_not_change_the_output_layer(words, tmp_path):
    args = arguments(save("llama", words, tmp_path))
    model, processor, new = build_model(args, LABELS)
    rows = model.text_classifier.weight.clone()
    inputs = processor(text=TEXTS, return_tensors="pt")

    adapted = set_trainable(model, args, new)
    with torch.enable_grad():
        adapted.train()(**inputs, labels=torch.tensor([1, 0])).loss.backward()

    gradients = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("lora_B" in name and gradient.any() for name, gradient in gradients.items())
    assert not any("text_classifier" in name for name, p in adapted.named_parameters() if p.requires_grad)
    assert torch.equal(adapted.merge_and_unload().text_classifier.weight, rows)


@pytest.mark.slow
def test_exported_graph_predicts_the_same(words, tmp_path):
    model, processor, _ = build_model(arguments(save("llama", words, tmp_path / "lm")), LABELS)
    export_onnx(model.eval(), processor, tmp_path / "graph")

    expected, found = (
        load_pipeline(model, processor=processor)({"text": TEXTS[0]}),
        EmotionPredictor(tmp_path / "graph")(text=TEXTS[0]),
    )

    assert [entry["label"] for entry in found] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


def test_label_words_override_labels(words):
    plain, glad = (label_token_ids(words, PROMPT, LABELS, chosen) for chosen in ((), ["happy=glad"]))

    assert words.convert_ids_to_tokens(glad) == ["Ġangry", "Ġglad", "Ġsad"]
    assert plain[0] == glad[0] and plain[1] != glad[1]


@pytest.mark.parametrize(
    ("prompt", "chosen", "message"),
    [
        (PROMPT, ["happy=sadder"], "The words 'sadder' and 'sad' begin with the same token, 'Ġsad'"),
        (PROMPT, ["calm=quiet"], r"the unknown label 'calm'; the labels are \['angry', 'happy', 'sad'\]"),
    ],
)
def test_invalid_label_words_raise(words, prompt, chosen, message):
    with pytest.raises(ValueError, match=message):
        label_token_ids(words, prompt, LABELS, chosen)


def test_tokenizer_that_appends_a_token_raises(tokenizer):
    with pytest.raises(ValueError, match="change when 'angry' follows, so a language model could not continue it"):
        label_token_ids(tokenizer, "you are", LABELS)


def test_bidirectional_model_raises(words, tmp_path):
    config = BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(0)
    model = BertLMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="attends to later tokens, so it is not a causal language model"):
        build_model(arguments(tmp_path), LABELS)


def test_model_without_output_layer_raises(words, tmp_path):
    folder = save("llama", words, tmp_path / "whole")
    AutoModelForCausalLM.from_pretrained(folder).base_model.save_pretrained(tmp_path / "bare")
    words.save_pretrained(tmp_path / "bare")

    with pytest.raises(ValueError, match=r"lacks weights: \['lm_head.weight'\]"):
        build_model(arguments(tmp_path / "bare"), LABELS)


def test_label_tokens_need_a_causal_language_model_and_one_token_per_label(tmp_path):
    text_config("distilbert").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"Unrecognized configuration class .*DistilBertConfig.* AutoModelForCausalLM"
    ):
        MMEmoForEmotionRecognition.from_pretrained_towers(text=str(tmp_path), label_token_ids=list(range(7)))
    with pytest.raises(ValueError, match=r"label_token_ids=\[1, 1\] must be one token for each of the 2 labels"):
        make_config(audio=None, text="llama", label_token_ids=[1, 1], id2label={0: "a", 1: "b"})
    with pytest.raises(ValueError, match="contradicts text_config=None"):
        make_config(text=None, label_token_ids=[1, 2, 3])


@torch.no_grad()
def test_segments_with_text_have_scores(words, tmp_path):
    model, processor, _ = build_model(arguments(save("llama", words, tmp_path)), LABELS)

    inputs = processor(
        text=["so sad"],
        word_times=[[("so", 0.0, 0.2), ("sad", 0.2, 0.4)]],
        segment_times=[[(0.0, 0.5), (0.5, 1.0)]],
        return_tensors="pt",
    )
    output = model.eval()(**inputs)

    torch.testing.assert_close(output.segment_logits[:, 0], output.logits)
    assert not output.segment_logits[:, 1].any() and not output.segment_modality_weights[:, 1].any()
