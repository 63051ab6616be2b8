"""The model that a run starts from: on an mmemo model, over two encoders, or joined from two halves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available

from mmemo.items import TEXT_SETTINGS
from modeling_mmemo import (
    MMEmoAudioEncoder,
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
)
from modeling_mmemo.evaluation.evaluation_run import model_labels
from modeling_mmemo.towers_mmemo import max_tokens
from modeling_mmemo.training.label_words import label_token_ids
from modeling_mmemo.training.training_arguments import PROMPT, ModelArguments


WHISPER_LIKE = ("whisper", "mmemo_audio")


@dataclass
class Half:
    """What a model has for one modality.

    Args:
        tower (`PreTrainedModel` or `str`): The encoder, or where it is loaded from.
        preprocessor: Feature extractor or tokenizer.
        branch, classifier (`nn.Module`, *optional*): Trained ones, of an mmemo model.
        layer_mix, pooling (`str`, *optional*): Those of the branch; the configuration's defaults where `None`.
        label_token_ids (`list[int]`, *optional*): Of a language model that says the labels.
        settings (`dict`): What its processor reads beside a text.
    """

    tower: PreTrainedModel | str | None = None
    preprocessor: Any = None
    branch: nn.Module | None = None
    classifier: nn.Module | None = None
    layer_mix: str | None = None
    pooling: str | None = None
    label_token_ids: list[int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def build_model(
    args: ModelArguments, labels: Sequence[str]
) -> tuple[MMEmoForEmotionRecognition, MMEmoProcessor, list[str]]:
    """The model, its processor, and the modalities whose branches are new."""
    settings: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "fusion_dropout": args.fusion_dropout,
        "modality_dropout": args.modality_dropout,
        "modality_loss_weight": args.modality_loss_weight,
        "label_smoothing": args.label_smoothing,
        "focal_gamma": args.focal_gamma,
        # Those of a model that is trained on were for other rows.
        "class_weights": None,
    }
    if args.model_name_or_path is not None:
        model = MMEmoForEmotionRecognition.from_pretrained(
            args.model_name_or_path,
            ignore_mismatched_sizes=True,
            temperature=1.0,
            conformal_quantiles=None,
            **settings,
        )
        return model, MMEmoProcessor.from_pretrained(args.model_name_or_path), []

    layers = {} if args.audio_layers is None else {"num_hidden_layers": args.audio_layers}
    halves = {"audio": _audio_half(args, labels, layers), "text": _text_half(args, labels)}
    chosen = {
        "fusion": args.fusion,
        "fusion_hidden_size": args.fusion_hidden_size,
        "audio_layer_mix": halves["audio"].layer_mix,
        "text_layer_mix": halves["text"].layer_mix,
        "audio_pooling": halves["audio"].pooling,
        "text_pooling": halves["text"].pooling,
        "label_token_ids": halves["text"].label_token_ids,
    }
    model = MMEmoForEmotionRecognition.from_audio_text_pretrained(
        halves["audio"].tower,
        halves["text"].tower,
        audio_kwargs=layers,
        text_kwargs={"quantization_config": four_bits()} if args.text_mode == "qlora" else {},
        **{name: value for name, value in chosen.items() if value is not None},
        **settings,
    )
    parts = {
        "audio": (model.mmemo.audio_branch, model.audio_classifier),
        "text": (model.mmemo.text_branch, model.text_classifier),
    }
    for modality, half in halves.items():
        if half.branch is not None:
            branch, classifier = parts[modality]
            # Only a model of both modalities has a projection to attend with.
            branch.load_state_dict({**branch.state_dict(), **half.branch.state_dict()})
            classifier.load_state_dict(half.classifier.state_dict())
    new = [modality for modality, half in halves.items() if half.tower is not None and half.branch is None]
    preprocessors = [half.preprocessor for half in halves.values()]
    if halves["text"].tower is not None:
        _bound(preprocessors[1], model.mmemo.text_tower)
    return model, MMEmoProcessor(*preprocessors, **halves["text"].settings), new


def four_bits() -> BitsAndBytesConfig:
    """How a tower's weights are read for QLoRA: as 4-bit normal floats, their scales quantised, too.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.

    Raises:
        ValueError: If there is no CUDA GPU.
        ImportError: If bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise ValueError("text_mode=qlora needs a CUDA GPU, and there is none; choose text_mode=lora.")
    if not is_bitsandbytes_available():
        raise ImportError("text_mode=qlora needs bitsandbytes: pip install 'mmemo[qlora]'.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _bound(tokenizer: PreTrainedTokenizerBase, tower: PreTrainedModel) -> None:
    """Has a tokenizer cut what its tower has no positions for, where it does not know of them itself."""
    limit = max_tokens(tower)
    if limit is not None and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit


def _audio_half(args: ModelArguments, labels: Sequence[str], layers: dict[str, int]) -> Half:
    name = args.audio_encoder
    if name is None:
        return Half()
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type == MMEmoConfig.model_type:
        return _load_half(args, "audio", labels, ("audio_layers", "audio_layer_mix", "trim_db"))
    if model_type not in WHISPER_LIKE:
        if args.trim_db is not None:
            raise ValueError(
                f"trim_db={args.trim_db} contradicts audio_encoder={name}: the feature extractor of a {model_type} "
                "does not trim. Trim the clips themselves, or leave it out."
            )
        return Half(name, AutoFeatureExtractor.from_pretrained(name), layer_mix=args.audio_layer_mix)
    tower = MMEmoAudioEncoder.from_pretrained(name, **layers)
    extractor = MMEmoFeatureExtractor(
        preset="whisper",
        n_mels=tower.config.num_mel_bins,
        loudness_dbfs=args.loudness_dbfs,
        trim_db=args.trim_db,
    )
    return Half(tower, extractor, layer_mix=args.audio_layer_mix)


def _text_half(args: ModelArguments, labels: Sequence[str]) -> Half:
    name = args.text_encoder
    if name is None:
        return Half()
    if AutoConfig.from_pretrained(name).model_type == MMEmoConfig.model_type:
        if args.text_mode == "qlora":
            raise ValueError(
                f"text_mode=qlora contradicts text_encoder={name}: 4 bits are for an encoder that is read as it was "
                "released. Give that, or choose text_mode=lora."
            )
        if args.text_head == "label_words":
            raise ValueError(
                f"text_head=label_words contradicts text_encoder={name}: an mmemo model has its own head already."
            )
        return _load_half(args, "text", labels, ("text_layer_mix", "text_pooling", *TEXT_SETTINGS))
    tokenizer = AutoTokenizer.from_pretrained(name)
    settings = {name: getattr(args, name) for name in TEXT_SETTINGS if getattr(args, name) is not None}
    token_ids = None
    if args.text_head == "label_words":
        settings = {"prompt": PROMPT} | settings
        token_ids = label_token_ids(tokenizer, settings["prompt"], labels, args.label_words)
    return Half(
        name,
        tokenizer,
        layer_mix=args.text_layer_mix,
        pooling=args.text_pooling,
        label_token_ids=token_ids,
        settings=settings,
    )


def _load_half(args: ModelArguments, modality: str, labels: Sequence[str], settled: Sequence[str]) -> Half:
    """The half of an mmemo model for `modality`; arguments that it has `settled` are refused."""
    name = getattr(args, f"{modality}_encoder")
    for argument in settled:
        if getattr(args, argument) is not None:
            raise ValueError(
                f"{argument}={getattr(args, argument)} contradicts {modality}_encoder={name}: an mmemo model has its "
                "own already."
            )
    model = MMEmoForEmotionRecognition.from_pretrained(name)
    has = [found for found in ("audio", "text") if getattr(model.config, f"{found}_config") is not None]
    if modality not in has:
        raise ValueError(f"{modality}_encoder={name} is an mmemo model of {' and '.join(has)} alone.")
    known = model_labels(model.config)
    if known != list(labels):
        raise ValueError(f"{modality}_encoder={name} tells {known} apart, in this order, but labels={list(labels)}.")
    processor = MMEmoProcessor.from_pretrained(name)
    return Half(
        getattr(model.mmemo, f"{modality}_tower"),
        processor.feature_extractor if modality == "audio" else processor.tokenizer,
        getattr(model.mmemo, f"{modality}_branch"),
        getattr(model, f"{modality}_classifier"),
        getattr(model.config, f"{modality}_layer_mix"),
        getattr(model.config, f"{modality}_pooling"),
        model.config.label_token_ids if modality == "text" else None,
        {name: getattr(processor, name) for name in TEXT_SETTINGS},
    )
