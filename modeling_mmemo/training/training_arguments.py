"""The options of a training run, from a YAML file and flags; contradictory options raise an error at once."""

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments

from mmemo.modalities import MODALITIES
from mmemo.video.video_inputs import MAX_FPS
from modeling_mmemo.configuration_mmemo import LAYER_MIXES, POOLINGS, MMEmoVideoConfig
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.config_file import read_config
from modeling_mmemo.data.corpora import CORPORA
from modeling_mmemo.data.source_arguments import SourceArguments, check_pairs
from modeling_mmemo.training.fold_arguments import FoldArguments


AUDIO_MODES = ("frozen", "lora", "full")
TEXT_MODES = ("frozen", "lora", "qlora", "full")
VIDEO_MODES = (None, "frozen", "lora", "full")
# A video encoder that is newly initialised, instead of a name.
NEW_VIDEO_ENCODER = MMEmoVideoConfig.model_type
PROMPT = "\nEmotion:"
TEXT_HEADS = ("linear", "label_words")
PAIR_SPLITS = ("train", "dev")
CLASS_WEIGHTS = ("none", "balanced", "corpus")
STORED_DTYPES = ("float32", "float16")
SAMPLING_STRATEGIES = ("group_by_length", "random", "sequential")
LEAK_COLUMNS = ("speaker", "text")

_CHOICES = {
    "audio_mode": AUDIO_MODES,
    "text_mode": TEXT_MODES,
    "video_mode": VIDEO_MODES,
    "text_head": TEXT_HEADS,
    "class_weights": CLASS_WEIGHTS,
    "stored_dtype": STORED_DTYPES,
}
# Options that configure an encoder, and the option that names it.
_ENCODER_OPTIONS = {
    "audio_layers": "audio_encoder",
    "audio_layer_mix": "audio_encoder",
    "trim_db": "audio_encoder",
    "cut_to_speech": "audio_encoder",
    "text_layers": "text_encoder",
    "vocabulary_size": "text_encoder",
    "text_layer_mix": "text_encoder",
    "text_pooling": "text_encoder",
    "context_turns": "text_encoder",
    "context_tokens": "text_encoder",
    "prompt": "text_encoder",
    "frames_per_second": "video_encoder",
    "video_layer_mix": "video_encoder",
    "video_pooling": "video_encoder",
}
# Options that a checkpoint of an mmemo model determines.
_CHECKPOINT_OPTIONS = ("fusion", "fusion_hidden_size", *_ENCODER_OPTIONS)


@dataclass
class ModelArguments:
    """
    The encoders, how they are trained, and the parts behind them.

    Raises:
        ValueError: If a choice is unknown, or two options contradict each other.
    """

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of an mmemo model to continue from, instead of new encoders."},
    )
    audio_encoder: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of an audio encoder, or of an mmemo model whose audio half is used."},
    )
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of a text encoder, or of an mmemo model whose text half is used."},
    )
    video_encoder: str | None = field(
        default=None,
        metadata={
            "help": "Hub name or folder of an image encoder (ViT, CLIP, DINOv2), or of an mmemo model whose video "
            f"half is used; or {NEW_VIDEO_ENCODER} for a small new network over 52 blendshapes of the face."
        },
    )
    audio_layers: int | None = field(
        default=None, metadata={"help": "Keep only this many first layers of the audio encoder; all by default."}
    )
    text_layers: int | None = field(
        default=None, metadata={"help": "Keep only this many first layers of the text encoder; all by default."}
    )
    vocabulary_size: int | None = field(
        default=None,
        metadata={"help": "Cut the vocabulary of the text encoder to this many tokens, those of the run's texts."},
    )
    audio_mode: str = field(default="lora", metadata={"help": f"How to train the audio encoder: {AUDIO_MODES}."})
    text_mode: str = field(
        default="lora",
        metadata={
            "help": f"How to train the text encoder: {TEXT_MODES}; qlora is LoRA over 4-bit weights, on a CUDA GPU."
        },
    )
    video_mode: str | None = field(
        default=None,
        metadata={
            "help": "How to train the video encoder: frozen, lora or full; lora by default, and full for a new one."
        },
    )
    audio_freeze_layers: int | None = field(
        default=None,
        metadata={"help": "With audio_mode=full, number of first layers that stay frozen, with the embeddings."},
    )
    text_freeze_layers: int | None = field(
        default=None,
        metadata={"help": "With text_mode=full, number of first layers that stay frozen, with the embeddings."},
    )
    video_freeze_layers: int | None = field(
        default=None,
        metadata={"help": "With video_mode=full, number of first layers that stay frozen, with the embeddings."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of LoRA, divided by its rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of the linear layers that get LoRA, such as q_proj or attention.output.dense; all "
            "attention projections (query, key, value, output) by default."
        },
    )
    context_turns: int | None = field(
        default=None, metadata={"help": "Number of dialogue turns that are encoded before a text; 0 by default."}
    )
    context_tokens: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens of these turns; the last ones; 256 by default."}
    )
    fusion: str | None = field(
        default=None, metadata={"help": "early, late, cross_attention or hybrid; hybrid by default."}
    )
    fusion_hidden_size: int | None = field(
        default=None, metadata={"help": "Hidden size of the layers on top of the encoders; 256 by default."}
    )
    audio_layer_mix: str | None = field(
        default=None,
        metadata={"help": f"How to combine the layers of a new audio encoder: {LAYER_MIXES}; the first by default."},
    )
    text_layer_mix: str | None = field(
        default=None,
        metadata={"help": f"How to combine the layers of a new text encoder: {LAYER_MIXES}; the first by default."},
    )
    text_pooling: str | None = field(
        default=None, metadata={"help": f"How to pool the tokens of a new text encoder: {POOLINGS}; mean by default."}
    )
    frames_per_second: float | None = field(
        default=None, metadata={"help": "Frames per second in which a face is found; 5 by default."}
    )
    video_layer_mix: str | None = field(
        default=None,
        metadata={"help": f"How to combine the layers of a new video encoder: {LAYER_MIXES}; the first by default."},
    )
    video_pooling: str | None = field(
        default=None,
        metadata={"help": f"How to pool the frames of a new video encoder: {POOLINGS}; mean_std by default."},
    )
    text_head: str = field(
        default="linear",
        metadata={
            "help": f"Head of the text encoder: {TEXT_HEADS}; label_words uses the likelihood that a causal language "
            "model gives to the word of each label after the prompt."
        },
    )
    label_words: list[str] = field(
        default_factory=list, metadata={"help": "Words for labels, as in happy=joyful; the labels by default."}
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": f"String appended to every text; none by default, and {PROMPT!r} with text_head=label_words."
        },
    )
    fusion_dropout: float = field(default=0.1, metadata={"help": "Dropout on top of the encoders."})
    modality_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability in training that a sample loses some of its modalities, but not all."},
    )
    modality_loss_weight: float = field(default=0.3, metadata={"help": "Weight of the loss of each modality's head."})
    class_weights: str = field(
        default="none",
        metadata={
            "help": "none, balanced (gives rare labels more weight in the loss) or corpus (gives all labels of a "
            "corpus the same weight, and a corpus the square root of its number of rows)."
        },
    )
    class_weight_power: float = field(
        default=1.0,
        metadata={
            "help": "class_weights divides the weight of a label by its number of rows to this power: 1 gives all "
            "labels the same weight, 0.5 is halfway to none."
        },
    )
    bias_correction: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Some of audio, text and video: adds a bias for each label to the head of a modality, fitted on "
            "the development rows; corrects the shift by class_weights."
        },
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the target spread over all labels."})
    focal_gamma: float = field(default=0.0, metadata={"help": "Exponent of the focal loss; 0 is cross-entropy."})
    loudness_dbfs: float = field(default=-23.0, metadata={"help": "RMS level that every clip is normalised to, dBFS."})
    trim_db: float | None = field(
        default=None,
        metadata={"help": "Trim the start and end of a clip below its maximum level by this many dB; off by default."},
    )
    cut_to_speech: bool | None = field(
        default=None,
        metadata={"help": "Cut clips to their speech, in training and in predictions; yes by default."},
    )
    stored_dtype: str = field(
        default="float32",
        metadata={"help": f"Data type that the encoders are rounded to and saved in: {STORED_DTYPES}."},
    )

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {valid}.")
        if unknown := [modality for modality in self.bias_correction if modality not in MODALITIES]:
            raise ValueError(f"bias_correction={unknown} is unknown; choose from {', '.join(MODALITIES)}.")
        if not 0 <= self.class_weight_power <= 1:
            raise ValueError(f"class_weight_power={self.class_weight_power} must be in [0, 1].")
        if self.class_weight_power != 1 and self.class_weights == "none":
            raise ValueError(
                f"class_weight_power={self.class_weight_power} contradicts class_weights=none; set class_weights to "
                "balanced or corpus."
            )
        if self.frames_per_second is not None and not 0 < self.frames_per_second <= MAX_FPS:
            raise ValueError(f"frames_per_second={self.frames_per_second} must be in (0, {MAX_FPS:.0f}].")
        self._check_encoders()
        self._check_modes()
        self._check_text_head()

    def _check_encoders(self) -> None:
        """Raises a `ValueError` unless there is either a checkpoint or an encoder for every encoder option."""
        encoders = {f"{modality}_encoder": getattr(self, f"{modality}_encoder") for modality in MODALITIES}
        given = {name: value for name, value in encoders.items() if value is not None}
        if self.model_name_or_path is None and not given:
            raise ValueError(
                f"Give one or several of {', '.join(encoders)}, or a model_name_or_path to continue from."
            )
        if self.model_name_or_path is not None:
            if given:
                raise ValueError(
                    f"model_name_or_path={self.model_name_or_path} contradicts {given}: the model has its own "
                    "encoders. Leave one of them out."
                )
            for name in _CHECKPOINT_OPTIONS:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)} contradicts model_name_or_path={self.model_name_or_path}: the "
                        f"checkpoint determines {name}. Leave it out."
                    )
            return
        for name, encoder in _ENCODER_OPTIONS.items():
            if getattr(self, name) is not None and encoders[encoder] is None:
                raise ValueError(
                    f"{name}={getattr(self, name)} contradicts {encoder}=None. Give {encoder}, or leave {name} out."
                )

    def _check_modes(self) -> None:
        """Raises a `ValueError` for options that need another mode of an encoder."""
        for modality in MODALITIES:
            mode, frozen = self.mode_of(modality), self.freeze_layers_of(modality)
            if frozen is not None and mode != "full":
                raise ValueError(
                    f"{modality}_freeze_layers={frozen} contradicts {modality}_mode={mode}; it needs full."
                )
        if self.vocabulary_size is not None and self.is_adapted("text"):
            raise ValueError(
                f"vocabulary_size={self.vocabulary_size} contradicts text_mode={self.text_mode}: an adapter is loaded "
                "over the encoder as it was released, with its whole vocabulary. Set text_mode to full or frozen."
            )
        if self.text_mode == "qlora" and self.text_encoder is None:
            raise ValueError("text_mode=qlora contradicts text_encoder=None; give an encoder to load in 4 bits.")
        if self.video_encoder == NEW_VIDEO_ENCODER and self.mode_of("video") != "full":
            raise ValueError(
                f"video_mode={self.video_mode} contradicts video_encoder={NEW_VIDEO_ENCODER}, which is newly "
                "initialised and has to be trained. Set video_mode to full, or leave it out."
            )
        encoded = [modality for modality in MODALITIES if modality != "video" or self.video_encoder is not None]
        if self.lora_target_modules and not any(self.is_adapted(modality) for modality in encoded):
            modes = " and ".join(f"{modality}_mode={self.mode_of(modality)}" for modality in encoded)
            raise ValueError(
                f"lora_target_modules={self.lora_target_modules} contradicts {modes}; set one of them to lora."
            )

    def _check_text_head(self) -> None:
        """Raises a `ValueError` for options that contradict `text_head`."""
        if self.text_head == "label_words" and self.text_encoder is None:
            raise ValueError("text_head=label_words contradicts text_encoder=None; give a causal language model.")
        if self.vocabulary_size is not None and self.text_head == "label_words":
            raise ValueError(
                f"vocabulary_size={self.vocabulary_size} contradicts text_head=label_words, which needs the whole "
                "vocabulary of the language model. Leave one of them out."
            )
        if self.label_words and self.text_head != "label_words":
            raise ValueError(
                f"label_words={self.label_words} contradicts text_head={self.text_head}; set text_head to label_words."
            )
        check_pairs("label_words", self.label_words, "label=word")

    def mode_of(self, modality: str) -> str:
        """Returns how the encoder of `modality` is trained, one of `TEXT_MODES`."""
        if modality == "video" and self.video_mode is None:
            return "full" if self.video_encoder == NEW_VIDEO_ENCODER else "lora"
        return getattr(self, f"{modality}_mode")

    def is_adapted(self, modality: str) -> bool:
        """Whether the encoder of `modality` gets LoRA."""
        return self.mode_of(modality) in ("lora", "qlora")

    def freeze_layers_of(self, modality: str) -> int | None:
        """Returns the number of first layers of the encoder of `modality` that stay frozen."""
        return getattr(self, f"{modality}_freeze_layers")


# Options of `DataArguments` in [0, 1].
_PROBABILITIES = (
    "pair_probability",
    "neutral_text_probability",
    "blank_probability",
    "context_dropout",
    "dev_share",
)


@dataclass
class DataArguments(SourceArguments):
    """
    The training and development rows.

    Raises:
        ValueError: If a value is invalid, or two options contradict each other.
    """

    corpus_weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Passes over each corpus per epoch; 0.5 uses half of it, 0 only its texts, for simulated pairs."
        },
    )
    fold: int | None = field(
        default=None, metadata={"help": "Fold of the cross-validation of a corpus, counted from 1."}
    )
    dev_share: float = field(
        default=0.0, metadata={"help": "Share of the speakers to set aside where a source has no development split."}
    )
    leak_columns: list[str] = field(
        default_factory=lambda: ["speaker"],
        metadata={"help": f"Columns whose values must not occur in two splits: some of {LEAK_COLUMNS}."},
    )
    allow_leaks: bool = field(default=False, metadata={"help": "Train although a speaker occurs in two splits."})
    pair_probability: float = field(
        default=0.0,
        metadata={"help": "Probability that a clip without text gets a random text of its label (simulated pairs)."},
    )
    pair_split: str = field(
        default="train",
        metadata={
            "help": "Split of the texts in simulated pairs: train, or dev for a text encoder that was trained on the "
            "texts of train, and predicts them better than other texts."
        },
    )
    neutral_text_probability: float = field(
        default=0.0,
        metadata={
            "help": "Probability that the text of a simulated pair is neutral, whatever the label of the clip: words "
            "often are."
        },
    )
    blank_probability: float = field(
        default=0.0,
        metadata={"help": "Probability that the audio of a row with text is replaced by noise, for a robust fusion."},
    )
    context_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability in training that a text loses its speaker and the turns before it."},
    )
    cache_states: bool = field(
        default=True, metadata={"help": "Cache the hidden states of frozen encoders instead of computing them again."}
    )
    cache_dir: str = field(default="runs/features", metadata={"help": "Folder of this cache."})
    augmented_copies: int = field(
        default=0,
        metadata={
            "help": "With a frozen audio encoder, number of augmented copies of each training clip that are cached; "
            "each epoch draws one of them or the clip itself."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Stream the training rows, in bounded memory; needs max_steps."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.corpus_weights = self.corpus_weights or [1.0] * len(self.corpora)
        self._check_values()
        self._check_corpora()
        for name in ("pair_probability", "blank_probability", "dev_share"):
            if self.streaming and getattr(self, name) > 0:
                raise ValueError(
                    f"streaming=True contradicts {name}={getattr(self, name)}, which needs all rows. Set it to 0."
                )

    def _check_corpora(self) -> None:
        """Raises a `ValueError` unless the corpora, their weights, columns and fold match."""
        if not self.corpora:
            raise ValueError("corpora is empty; name a corpus, a table, an audiofolder or a dataset of the Hub.")
        weights = self.corpus_weights
        if len(weights) != len(self.corpora) or min(weights) < 0 or not any(weights):
            raise ValueError(
                f"corpus_weights={weights} must have one number for each of corpora={self.corpora}, none negative and "
                "not all 0."
            )
        known = [corpus for corpus in self.corpora if corpus in CORPORA]
        if self.fold is not None and not any(CORPORA[corpus].folds for corpus in known):
            raise ValueError(
                f"fold={self.fold} contradicts corpora={self.corpora}; none of them has folds. Leave fold out."
            )
        self.check_columns(self.corpora)

    def _check_values(self) -> None:
        """Raises a `ValueError` if an option has an invalid value."""
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1].")
        if self.pair_split not in PAIR_SPLITS:
            raise ValueError(f"pair_split={self.pair_split!r} is unknown; choose one of {PAIR_SPLITS}.")
        if self.neutral_text_probability > 0 and self.pair_probability == 0:
            raise ValueError(
                f"neutral_text_probability={self.neutral_text_probability} contradicts pair_probability=0: it is "
                "about the texts of simulated pairs. Set pair_probability, or set it to 0."
            )
        if self.augmented_copies < 0:
            raise ValueError(f"augmented_copies={self.augmented_copies} must be at least 0.")
        if unknown := set(self.leak_columns) - set(LEAK_COLUMNS):
            raise ValueError(f"leak_columns={sorted(unknown)} is unknown; choose some of {LEAK_COLUMNS}.")


@dataclass
class EmotionTrainingArguments(TrainingArguments):
    """
    The `transformers` TrainingArguments with other defaults, and a learning rate for the parts on top of the encoders.

    `learning_rate` is the learning rate of the encoders.

    Raises:
        ValueError: If an option is not supported here, or two options contradict each other.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "AdamW's learning rate for the encoders."})
    head_learning_rate: float = field(
        default=5e-4, metadata={"help": "AdamW's learning rate for everything on top of the encoders."}
    )
    warmup_steps: float = field(
        default=100, metadata={"help": "Steps of linear warm-up, or their share of all steps if below 1."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length batches clips of similar length, random does not, sequential keeps the order."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without an improvement of metric_for_best_model."},
    )
    # Not options, as no other value works: the collator needs all columns of a row, `labels` is the only label column,
    # and every parameter takes part in every step (see `EmotionTrainer.compute_loss`).
    remove_unused_columns: bool = field(default=False, init=False)
    label_names: list[str] = field(default_factory=lambda: ["labels"], init=False)
    ddp_find_unused_parameters: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} contradicts load_best_model_at_end=False; "
                "set the latter to true, and metric_for_best_model."
            )
        if self.train_sampling_strategy not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is not supported; choose one of "
                f"{SAMPLING_STRATEGIES}."
            )
        if self.label_smoothing_factor > 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} would ignore which labels a corpus has; set "
                "label_smoothing."
            )
        super().__post_init__()
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
        # Every process reads its own rows of a stream: batches of different keys and lengths cannot be dispatched.
        self.accelerator_config.dispatch_batches = False


Arguments = tuple[ModelArguments, DataArguments, Augmentation, EmotionTrainingArguments]


def parse_arguments(argv: list[str]) -> Arguments:
    """
    Parses the options of one training run, `CONFIG.yaml --option value ...`.

    Args:
        argv (`list[str]`): See [`parse_cross_validation`].

    Raises:
        ValueError: See [`parse_cross_validation`]; also if an option of [`FoldArguments`] is set.
    """
    arguments, folds = parse_cross_validation(argv)
    for name, value in vars(folds).items():
        if value:
            raise ValueError(
                f"{name}={value} is an option of cross-validation: run python eval.py --folds, or leave it out."
            )
    return arguments


def parse_cross_validation(argv: list[str]) -> tuple[Arguments, FoldArguments]:
    """
    Parses `CONFIG.yaml --option value ...`; flags override the file, and the file overrides its base.

    Args:
        argv (`list[str]`): An optional configuration file, see [`read_config`], and flags.

    Returns:
        `tuple[Arguments, FoldArguments]`: The options of a training run, and those that only a cross-validation reads.

    Raises:
        ValueError: If the file or a flag names an option that does not exist, or two options contradict each other.
    """
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, Augmentation, EmotionTrainingArguments, FoldArguments), allow_abbrev=False
    )
    parser.usage = "train.py CONFIG.yaml [--option value ...]"
    if argv and not argv[0].startswith("-"):
        options = read_config(argv[0])
        argv = [flag for name, value in options.items() for flag in _as_flags(name, value)] + argv[1:]
    model, data, augmentation, training, folds = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    _check_combination(model, data, augmentation, training)
    folds.check(data.corpora, data.fold)
    return (model, data, augmentation, training), folds


def _as_flags(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(value) if isinstance(value, dict) else str(value) for value in values)]


def _check_combination(
    model: ModelArguments, data: DataArguments, augmentation: Augmentation, training: EmotionTrainingArguments
) -> None:
    """Raises a `ValueError` if options of different groups contradict each other."""
    if data.augmented_copies > 0:
        _check_copies(model, data, augmentation)
    if data.streaming:
        _check_streaming(model, training)
    elif data.cache_states:
        _check_cache(model, data, augmentation)
    encoded = [modality for modality in MODALITIES if modality != "video" or model.video_encoder is not None]
    if training.activation_checkpointing and all(model.mode_of(modality) == "frozen" for modality in encoded):
        modes = " and ".join(f"{modality}_mode=frozen" for modality in encoded)
        raise ValueError(f"activation_checkpointing=True contradicts {modes}. Set it to false.")
    if model.model_name_or_path is None:
        _check_several_encoders(model, data)


def _check_several_encoders(model: ModelArguments, data: DataArguments) -> None:
    """Raises a `ValueError` for options about samples with several modalities that the new encoders cannot have."""
    given = {modality for modality in MODALITIES if getattr(model, f"{modality}_encoder") is not None}
    for name, value, is_possible, needed in (
        (
            "pair_probability",
            data.pair_probability,
            "text" in given and len(given) > 1,
            "a text encoder and another one",
        ),
        ("blank_probability", data.blank_probability, {"audio", "text"} <= given, "encoders of audio and text"),
        ("modality_dropout", model.modality_dropout, len(given) > 1, "two encoders"),
    ):
        if value > 0 and not is_possible:
            missing = next(f"{modality}_encoder" for modality in MODALITIES if modality not in given)
            raise ValueError(f"{name}={value} contradicts {missing}=None; it needs {needed}.")


def _check_cache(model: ModelArguments, data: DataArguments, augmentation: Augmentation) -> None:
    """Raises a `ValueError` for options that would change inputs whose states are cached."""
    # With augmented copies, the augmentation is cached too.
    probabilities = {} if data.augmented_copies > 0 else vars(augmentation)
    probabilities = {**probabilities, "blank_probability": data.blank_probability}
    augmented = [name for name, value in probabilities.items() if name.endswith("_probability") and value > 0]
    if augmented and model.audio_mode == "frozen":
        raise ValueError(
            f"{augmented[0]} contradicts audio_mode=frozen with cache_states=True: cached states cannot be augmented. "
            "Set cache_states to false, or cache augmented clips (augmented_copies)."
        )
    if data.context_dropout > 0 and model.text_mode == "frozen":
        raise ValueError(
            f"context_dropout={data.context_dropout} contradicts text_mode=frozen with cache_states=True: cached "
            "states were computed with the context. Set cache_states to false."
        )


def _check_copies(model: ModelArguments, data: DataArguments, augmentation: Augmentation) -> None:
    """Raises a `ValueError` for options that contradict `augmented_copies`."""
    if model.audio_mode != "frozen":
        raise ValueError(
            f"augmented_copies={data.augmented_copies} contradicts audio_mode={model.audio_mode}: only a frozen "
            "encoder is cached. Set augmented_copies to 0; clips are then augmented in every epoch."
        )
    if data.streaming or not data.cache_states:
        raise ValueError(
            f"augmented_copies={data.augmented_copies} contradicts cache_states={data.cache_states} with streaming="
            f"{data.streaming}: the copies are cached. Set cache_states to true and streaming to false."
        )
    if not augmentation.is_active:
        raise ValueError(
            f"augmented_copies={data.augmented_copies} contradicts an augmentation whose probabilities are all 0. Set "
            "one of them, such as noise_probability, or set augmented_copies to 0."
        )


def _check_streaming(model: ModelArguments, training: EmotionTrainingArguments) -> None:
    """Raises a `ValueError` for options that streamed rows cannot support."""
    if model.class_weights != "none":
        raise ValueError(
            f"streaming=True contradicts class_weights={model.class_weights}, which counts all rows. Set it to none."
        )
    if training.eval_strategy != "no":
        raise ValueError(
            f"streaming=True contradicts eval_strategy={training.eval_strategy.value}: only training rows are "
            "streamed. Set it to no, and evaluate the model with eval.py."
        )
    if training.max_steps <= 0:
        raise ValueError(
            f"streaming=True contradicts max_steps={training.max_steps}: a stream has no length. Set the number of "
            "steps."
        )
