"""Builds the model that a run starts from: a checkpoint, new encoders, or parts of mmemo models."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_bitsandbytes_available, logging

from mmemo.items import AUDIO_SETTINGS, TEXT_SETTINGS, VIDEO_SETTINGS
from mmemo.modalities import MODALITIES
from modeling_mmemo import (
    MMEmoAudioEncoder,
    MMEmoConfig,
    MMEmoFeatureExtractor,
    MMEmoForEmotionRecognition,
    MMEmoProcessor,
    MMEmoVideoConfig,
    MMEmoVideoEncoder,
)
from modeling_mmemo.configuration_mmemo import EMOTIONS
from modeling_mmemo.evaluation.checkpoints import checkpoint_config
from modeling_mmemo.evaluation.evaluation_run import model_labels
from modeling_mmemo.towers_mmemo import max_tokens
from modeling_mmemo.training.label_words import label_token_ids
from modeling_mmemo.training.training_arguments import NEW_VIDEO_ENCODER, PROMPT, ModelArguments


logger = logging.get_logger(__name__)

WHISPER_LIKE = ("whisper", "mmemo_audio")
SETTINGS = {"audio": AUDIO_SETTINGS, "text": TEXT_SETTINGS, "video": VIDEO_SETTINGS}
FRAMES_PER_SECOND = 5.0
# Image encoders that take pictures of any size.
ANY_SIZE = ("dinov2", "dinov2_with_registers")


@dataclass(kw_only=True)
class Half:
    """
    The parts of a model for one modality.

    Args:
        tower (`PreTrainedModel` or `str`, *optional*): The encoder, or its Hub name or folder.
        preprocessor (*optional*): The feature extractor or tokenizer; a video has only settings.
        branch, classifier (`nn.Module`, *optional*): Trained ones, of an mmemo model.
        config (`dict`): Fields of [`MMEmoConfig`] for this modality; those left out keep their defaults.
        settings (`dict`): Arguments of [`MMEmoProcessor`] for this modality.
    """

    tower: PreTrainedModel | str | None = None
    preprocessor: Any = None
    branch: nn.Module | None = None
    classifier: nn.Module | None = None
    config: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


def choose_labels(args: ModelArguments, labels: Sequence[str] = ()) -> list[str]:
    """
    Returns the labels of the model that [`build_model`] would build, in the order of its scores.

    Args:
        args (`ModelArguments`): The checkpoint or the encoders.
        labels (`Sequence[str]`, *optional*): The requested labels; by default those of the mmemo model, or of its
            halves, that the run starts from, or else [`EMOTIONS`].

    Raises:
        ValueError: If `labels` reorders the labels of a checkpoint, or the labels of two halves, or of a half and
            `labels`, differ: a trained head would then predict under the wrong names.
    """
    found = _checkpoint_labels(args)
    for option, known in found.items():
        source = f"{option}={getattr(args, option)}"
        if labels and list(labels) != known and sorted(labels) == sorted(known):
            raise ValueError(
                f"labels={list(labels)} reorders the labels of {source}, which are {known}: its trained heads would "
                "predict under the wrong names. Leave labels out to keep the order of the model."
            )
        if labels and list(labels) != known and option != "model_name_or_path":
            raise ValueError(
                f"labels={list(labels)} contradicts {source}, whose trained head has the labels {known}. Leave labels "
                "out, or choose another encoder."
            )
    for first, second in combinations(found, 2):
        if found[first] != found[second]:
            raise ValueError(
                f"{first}={getattr(args, first)} has the labels {found[first]}, but {second}={getattr(args, second)} "
                f"has {found[second]}. Train both with the same labels in the same order."
            )
    return list(labels) or next(iter(found.values()), list(EMOTIONS))


def _checkpoint_labels(args: ModelArguments) -> dict[str, list[str]]:
    """Returns the labels of each mmemo model that the run starts from, by the option that names it."""
    found = {}
    for option in ("model_name_or_path", *(f"{modality}_encoder" for modality in MODALITIES)):
        name = getattr(args, option)
        if name is None or (option == "video_encoder" and name == NEW_VIDEO_ENCODER):
            continue
        config = checkpoint_config(option, name)
        if isinstance(config, MMEmoConfig):
            found[option] = model_labels(config)
    return found


def build_model(
    args: ModelArguments, labels: Sequence[str] = ()
) -> tuple[MMEmoForEmotionRecognition, MMEmoProcessor, list[str]]:
    """
    Builds the model that a run trains.

    Args:
        args (`ModelArguments`): The checkpoint or the encoders.
        labels (`Sequence[str]`, *optional*): See [`choose_labels`].

    Returns:
        The model, its processor, and the modalities whose branches are newly initialised.

    Raises:
        ValueError: If the labels, or other options, contradict a checkpoint.
    """
    labels = choose_labels(args, labels)
    config: dict[str, Any] = {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "fusion_dropout": args.fusion_dropout,
        "modality_dropout": args.modality_dropout,
        "modality_loss_weight": args.modality_loss_weight,
        "label_smoothing": args.label_smoothing,
        "focal_gamma": args.focal_gamma,
        # Class weights of a checkpoint were computed from other rows.
        "class_weights": None,
    }
    if args.model_name_or_path is not None:
        return _load_checkpoint(args.model_name_or_path, labels, config)

    layers = {} if args.audio_layers is None else {"num_hidden_layers": args.audio_layers}
    halves = {"audio": _audio_half(args, layers), "text": _text_half(args, labels), "video": _video_half(args)}
    text_kwargs: dict[str, Any] = {"quantization_config": four_bit_config()} if args.text_mode == "qlora" else {}
    if args.text_layers is not None:
        text_kwargs["num_hidden_layers"] = args.text_layers
    chosen = {"fusion": args.fusion, "fusion_hidden_size": args.fusion_hidden_size}
    for half in halves.values():
        chosen |= half.config
    model = MMEmoForEmotionRecognition.from_pretrained_towers(
        **{modality: half.tower for modality, half in halves.items()},
        audio_kwargs=layers,
        text_kwargs=text_kwargs,
        **{name: value for name, value in chosen.items() if value is not None},
        **config,
    )
    _copy_trained_parts(halves, model)
    new_branches = [name for name, half in halves.items() if half.tower is not None and half.branch is None]
    if halves["text"].tower is not None:
        _limit_tokens(halves["text"].preprocessor, model.mmemo.text_tower)
    settings = {name: value for half in halves.values() for name, value in half.settings.items()}
    processor = MMEmoProcessor(halves["audio"].preprocessor, halves["text"].preprocessor, **settings)
    return model, processor, new_branches


def _load_checkpoint(
    name: str, labels: list[str], config: dict[str, Any]
) -> tuple[MMEmoForEmotionRecognition, MMEmoProcessor, list[str]]:
    """Loads an mmemo model to continue from; with other labels its classifiers are newly initialised."""
    checkpoint = MMEmoConfig.from_pretrained(name)
    has_new_head = labels != model_labels(checkpoint)
    if has_new_head and checkpoint.label_token_ids is not None:
        raise ValueError(
            f"labels={labels} contradicts model_name_or_path={name}, whose text head is the likelihood of the words "
            f"of its labels {model_labels(checkpoint)}. Leave labels out, or train again with text_head=label_words."
        )
    model = MMEmoForEmotionRecognition.from_pretrained(
        name,
        ignore_mismatched_sizes=has_new_head,
        temperature=1.0,
        conformal_quantiles=None,
        **config,
    )
    if has_new_head:
        _reset_classifiers(model)
        logger.warning(
            f"The labels {labels} differ from the labels of {name}, {model_labels(checkpoint)}: the classifiers are "
            "newly initialised and must be trained."
        )
    return model, MMEmoProcessor.from_pretrained(name), []


@torch.no_grad()
def _reset_classifiers(model: MMEmoForEmotionRecognition) -> None:
    """Initialises the classifiers again: one of the same size would otherwise keep the weights of other labels."""
    for name in (*MODALITIES, "fused"):
        classifier = getattr(model, f"{name}_classifier")
        if classifier is not None:
            nn.init.normal_(classifier.weight, std=model.config.initializer_range)
            nn.init.zeros_(classifier.bias)


def _copy_trained_parts(halves: dict[str, Half], model: MMEmoForEmotionRecognition) -> None:
    """Copies the branches and classifiers of trained halves to the model."""
    for modality, half in halves.items():
        if half.branch is not None and half.classifier is not None:
            branch, classifier = getattr(model.mmemo, f"{modality}_branch"), getattr(model, f"{modality}_classifier")
            # Only a model of several modalities has a projection for the cross-modal attention.
            branch.load_state_dict({**branch.state_dict(), **half.branch.state_dict()})
            classifier.load_state_dict(half.classifier.state_dict())


def four_bit_config() -> BitsAndBytesConfig:
    """
    Returns the quantisation for QLoRA: 4-bit normal floats (NF4) with double quantisation.

    Raises:
        ValueError: If there is no CUDA GPU.
        ImportError: If bitsandbytes is not installed.

    Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023.
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


def _limit_tokens(tokenizer: PreTrainedTokenizerBase, tower: PreTrainedModel) -> None:
    """Caps `model_max_length` at the maximum length of the encoder."""
    limit = max_tokens(tower)
    if limit is not None and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit


def _audio_half(args: ModelArguments, layers: dict[str, int]) -> Half:
    name = args.audio_encoder
    if name is None:
        return Half()
    model_type = AutoConfig.from_pretrained(name).model_type
    if model_type == MMEmoConfig.model_type:
        return _load_half(args, "audio", ("audio_layers", "audio_layer_mix", "trim_db", "cut_to_speech"))
    config = {"audio_layer_mix": args.audio_layer_mix}
    settings = {"speech_padding_s": None} if args.cut_to_speech is False else {}
    if model_type not in WHISPER_LIKE:
        if args.trim_db is not None:
            raise ValueError(
                f"trim_db={args.trim_db} contradicts audio_encoder={name}: the feature extractor of a {model_type} "
                "does not trim. Trim the clips themselves, or leave trim_db out."
            )
        extractor = AutoFeatureExtractor.from_pretrained(name)
        return Half(tower=name, preprocessor=extractor, config=config, settings=settings)
    tower = MMEmoAudioEncoder.from_pretrained(name, **layers)
    extractor = MMEmoFeatureExtractor(
        preset="whisper",
        n_mels=tower.config.num_mel_bins,
        loudness_dbfs=args.loudness_dbfs,
        trim_db=args.trim_db,
    )
    return Half(tower=tower, preprocessor=extractor, config=config, settings=settings)


def _text_half(args: ModelArguments, labels: Sequence[str]) -> Half:
    name = args.text_encoder
    if name is None:
        return Half()
    if AutoConfig.from_pretrained(name).model_type == MMEmoConfig.model_type:
        if args.text_mode == "qlora":
            raise ValueError(
                f"text_mode=qlora contradicts text_encoder={name}: only a pretrained encoder as it was released is "
                "loaded in 4 bits, not an mmemo model. Give the encoder, or choose text_mode=lora."
            )
        if args.text_head == "label_words":
            raise ValueError(
                f"text_head=label_words contradicts text_encoder={name}: an mmemo model has a text head already."
            )
        return _load_half(
            args, "text", ("text_layers", "vocabulary_size", "text_layer_mix", "text_pooling", *TEXT_SETTINGS)
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    config: dict[str, Any] = {"text_layer_mix": args.text_layer_mix, "text_pooling": args.text_pooling}
    settings = {name: getattr(args, name) for name in TEXT_SETTINGS if getattr(args, name) is not None}
    if args.text_head == "label_words":
        settings = {"prompt": PROMPT} | settings
        config["label_token_ids"] = label_token_ids(tokenizer, settings["prompt"], labels, args.label_words)
    return Half(tower=name, preprocessor=tokenizer, config=config, settings=settings)


def _video_half(args: ModelArguments) -> Half:
    name = args.video_encoder
    if name is None:
        return Half()
    if name != NEW_VIDEO_ENCODER and AutoConfig.from_pretrained(name).model_type == MMEmoConfig.model_type:
        return _load_half(args, "video", ("video_layer_mix", "video_pooling", "frames_per_second"))
    settings = {"frames_per_second": args.frames_per_second or FRAMES_PER_SECOND}
    config = {"video_layer_mix": args.video_layer_mix, "video_pooling": args.video_pooling}
    if name == NEW_VIDEO_ENCODER:
        return Half(tower=MMEmoVideoEncoder(MMEmoVideoConfig()), config=config, settings=settings)
    return Half(tower=name, config=config, settings=settings | _image_settings(name))


def _image_settings(name: str) -> dict[str, Any]:
    """
    Returns the settings of the pictures that an image encoder takes.

    Raises:
        ValueError: If the image processor of the encoder does not return square pictures of the encoder's size.
    """
    # Without torchvision, which no other part needs.
    images = AutoImageProcessor.from_pretrained(name, backend="pil")
    size = getattr(images, "crop_size", None) or images.size
    height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
    if height is None or height != width:
        raise ValueError(
            f"video_encoder={name} takes pictures of {size}, but those of faces are square; choose an encoder of "
            "square pictures, such as ViT, CLIP or DINOv2."
        )
    config = AutoConfig.from_pretrained(name)
    config = getattr(config, "vision_config", config)
    if config.image_size != height and config.model_type not in ANY_SIZE:
        raise ValueError(
            f"video_encoder={name} encodes pictures of {config.image_size} pixels, but its image processor returns "
            f"{height}; correct its preprocessor_config.json, or choose another encoder."
        )
    return {"crop_size": height, "image_mean": list(images.image_mean), "image_std": list(images.image_std)}


def _load_half(args: ModelArguments, modality: str, fixed: Sequence[str]) -> Half:
    """Loads the parts of an mmemo model for `modality`; raises a `ValueError` for options in `fixed` that are set."""
    name = getattr(args, f"{modality}_encoder")
    for option in fixed:
        if getattr(args, option) is not None:
            raise ValueError(
                f"{option}={getattr(args, option)} contradicts {modality}_encoder={name}: an mmemo model determines "
                f"{option}. Leave it out."
            )
    model = MMEmoForEmotionRecognition.from_pretrained(name)
    tower = getattr(model.mmemo, f"{modality}_tower")
    if tower is None:
        raise ValueError(f"{modality}_encoder={name} is an mmemo model without {modality}; choose one that has it.")
    processor = MMEmoProcessor.from_pretrained(name)
    config = {option: getattr(model.config, option) for option in (f"{modality}_layer_mix", f"{modality}_pooling")}
    if modality == "text":
        config["label_token_ids"] = model.config.label_token_ids
    return Half(
        tower=tower,
        preprocessor={"audio": processor.feature_extractor, "text": processor.tokenizer}.get(modality),
        branch=getattr(model.mmemo, f"{modality}_branch"),
        classifier=getattr(model, f"{modality}_classifier"),
        config=config,
        settings={option: getattr(processor, option) for option in SETTINGS[modality]},
    )
