import pytest
import torch
from tiny import AUDIO_ONLY, TEXT_ONLY, make_inputs, make_model

from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor
from modeling_mmemo.training.reduction import reduce_model, reduce_processor


LABELS = ["bored", "relieved", "tense"]
PREFIXES = {
    "audio": ("input_features", "audio_"),
    "text": ("input_ids", "attention_mask", "token_"),
    "video": "video_",
}


def with_heads_of(base, model):
    """Copies the heads that a reduced model with the labels of its base still has."""
    heads = {name: values for name, values in base.state_dict().items() if "_classifier." in name}
    new = model.state_dict()
    model.load_state_dict(new | {name: values for name, values in heads.items() if name in new})
    return model


@pytest.mark.parametrize("fusion", ["hybrid", "late", "early", "cross_attention"])
@pytest.mark.parametrize(
    "kept", [("audio", "text"), ("audio", "video"), ("text", "video"), ("audio", "text", "video")]
)
def test_a_reduced_model_predicts_as_its_base_without_the_other_modalities(fusion, kept):
    base = make_model(video="mmemo_video", fusion=fusion)
    for vote in filter(None, (base.vote, getattr(base.mmemo, "gate", None))):
        torch.nn.init.normal_(vote.weight)
    for layer in base.mmemo.layers:
        torch.nn.init.normal_(layer.slope)
    model = with_heads_of(base, reduce_model(base, kept, list(base.config.id2label.values())))
    inputs = {
        name: values
        for name, values in make_inputs(video="mmemo_video").items()
        if any(name.startswith(PREFIXES[modality]) for modality in kept)
    }

    with torch.no_grad():
        outputs, expected = model(**inputs), base(**inputs)

    torch.testing.assert_close(outputs.logits, expected.logits, atol=1e-5, rtol=1e-4)
    assert [name for name in PREFIXES if model.config.has_encoder(name)] == list(kept)


@pytest.mark.parametrize(("kept", "row"), [("audio", AUDIO_ONLY), ("text", TEXT_ONLY)])
def test_a_model_of_one_modality_has_new_heads_and_nothing_of_the_fusion(kept, row):
    base = make_model(projection_dim=4, temperature={"both": 2.0}, class_weights=[1.0] * 7)
    model = reduce_model(base, [kept], LABELS)

    assert list(model.config.id2label.values()) == LABELS and model.config.temperature == 1.0
    assert not model.config.is_multimodal and model.vote is None and model.fused_classifier is None
    inputs = {name: values for name, values in make_inputs().items() if name.startswith(PREFIXES[kept])}
    name = f"{kept}_embeds"
    torch.testing.assert_close(model(**inputs)[name], base(**inputs)[name])
    assert model(**inputs).logits.shape == (4, 3) and base.config.num_labels == 7


def test_late_fusion_keeps_the_weights_of_the_kept_modalities():
    base = make_model(video="mmemo_video", fusion="late", late_fusion_weights=[0.5, 0.3, 0.2])

    assert reduce_model(base, ["audio", "text"], LABELS).config.late_fusion_weights == [0.5, 0.3]
    assert reduce_model(base, ["audio"], LABELS).config.late_fusion_weights is None


def test_a_reduced_processor_has_the_settings_of_its_modalities(tokenizer):
    processor = MMEmoProcessor(
        MMEmoFeatureExtractor(n_mels=16), tokenizer, context_turns=2, speech_padding_s=None, frames_per_second=5.0
    )
    of_text, of_audio = reduce_processor(processor, ["text"]), reduce_processor(processor, ["audio"])

    assert of_text.feature_extractor is None and of_text.context_turns == 2 and of_text.frames_per_second is None
    assert of_audio.tokenizer is None and of_audio.speech_padding_s is None and of_audio.context_turns == 0
