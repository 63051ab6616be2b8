"""A model with some of the encoders of another one, and with heads for other labels."""

from collections.abc import Sequence

import torch

from mmemo.modalities import MODALITIES
from modeling_mmemo import MMEmoConfig, MMEmoForEmotionRecognition, MMEmoProcessor
from modeling_mmemo.training.build import SETTINGS


def reduce_model(
    base: MMEmoForEmotionRecognition, modalities: Sequence[str], labels: Sequence[str]
) -> MMEmoForEmotionRecognition:
    """
    Copies the encoders of some modalities, their branches, fusion and vote; the heads are newly initialised.

    Args:
        base (`MMEmoForEmotionRecognition`): The model to copy from, for single labels.
        modalities (`Sequence[str]`): The modalities to keep.
        labels (`Sequence[str]`): The labels of the new heads.
    """
    config = base.config
    dropped = {f"{modality}_config": None for modality in MODALITIES if modality not in modalities}
    fields = config.to_dict() | dropped
    for name in ("num_labels", "late_fusion_weights"):
        fields.pop(name, None)
    reduced = MMEmoConfig.from_dict(
        fields
        | {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "class_weights": None,
            "temperature": 1.0,
            "conformal_quantiles": None,
        }
    )
    kept = [index for index, modality in enumerate(config.modalities) if modality in reduced.modalities]
    if reduced.is_multimodal and config.late_fusion_weights is not None:
        reduced.late_fusion_weights = [config.late_fusion_weights[index] for index in kept]
    model = MMEmoForEmotionRecognition(reduced)
    weights = _copied_weights(base, model, kept)
    model.load_state_dict(model.state_dict() | weights)
    return model.eval()


def _copied_weights(
    base: MMEmoForEmotionRecognition, model: MMEmoForEmotionRecognition, kept: list[int]
) -> dict[str, torch.Tensor]:
    """Returns the weights of a reduced model, except for its heads; `kept` are the positions of its modalities among
    those of the base model."""
    width, count = base.config.fusion_hidden_size, len(base.config.modalities)
    columns = torch.tensor([index * width + column for index in kept for column in range(width)])
    voters = torch.tensor(kept)
    # The fused vector votes after the modalities.
    with_fused = torch.tensor([*kept, count] if base.mmemo.fuses else kept)
    chosen = {
        "mmemo.gate.weight": lambda weight: weight[voters][:, columns],
        "mmemo.gate.bias": lambda bias: bias[voters],
        "vote.weight": lambda weight: weight[with_fused][:, columns],
        "vote.bias": lambda bias: bias[with_fused],
        # The vectors are scaled by the number of modalities.
        "mmemo.fusion.0.weight": lambda weight: weight[:, columns] * (count / len(kept)),
    }
    for index, layer in enumerate(base.mmemo.layers):
        if index < len(model.mmemo.layers):
            pairs = [layer.pairs.index(pair) for pair in model.mmemo.layers[index].pairs]
            heads = base.config.num_attention_heads
            places = torch.tensor([pair * heads + head for pair in pairs for head in range(heads)])
            chosen[f"mmemo.layers.{index}.slope"] = lambda slope, places=places: slope[places]
    new = model.state_dict()
    return {
        name: chosen.get(name, torch.clone)(values)
        for name, values in base.state_dict().items()
        if name in new and "_classifier." not in name
    }


def reduce_processor(processor: MMEmoProcessor, modalities: Sequence[str]) -> MMEmoProcessor:
    """Returns a processor of some of the modalities of another one, with its settings."""
    settings = {name: getattr(processor, name) for modality in modalities for name in SETTINGS[modality]}
    return MMEmoProcessor(
        processor.feature_extractor if "audio" in modalities else None,
        processor.tokenizer if "text" in modalities else None,
        **settings,
    )
