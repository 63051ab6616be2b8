"""What a training run is told, from a YAML file and flags; what contradicts itself is refused at once."""

import json
from dataclasses import dataclass, field

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_mmemo.configuration_mmemo import EMOTIONS, LAYER_MIXES, POOLINGS
from modeling_mmemo.data.augmentation import Augmentation
from modeling_mmemo.data.corpora import CORPORA


AUDIO_MODES = ("frozen", "lora", "full")
TEXT_MODES = ("frozen", "lora", "qlora", "full")
PROMPT = "\nEmotion:"
TEXT_HEADS = ("linear", "label_words")
CLASS_WEIGHTS = ("none", "balanced")
STORED_DTYPES = ("float32", "float16")
SAMPLING_STRATEGIES = ("group_by_length", "random", "sequential")
LEAK_COLUMNS = ("speaker", "text")


@dataclass
class ModelArguments:
    """The encoders, what of them is trained, and what joins them."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "An mmemo model to train on, instead of new branches over two encoders."}
    )
    audio_encoder: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of an audio encoder, or of an mmemo model whose voice half is taken."},
    )
    text_encoder: str | None = field(
        default=None,
        metadata={"help": "Hub name or folder of a text encoder, or of an mmemo model whose text half is taken."},
    )
    audio_layers: int | None = field(
        default=None, metadata={"help": "Keep so many first layers of the audio encoder."}
    )
    audio_mode: str = field(default="lora", metadata={"help": f"How the audio encoder trains: {AUDIO_MODES}."})
    text_mode: str = field(
        default="lora",
        metadata={
            "help": f"How the text encoder trains: {TEXT_MODES}; qlora is LoRA over weights of 4 bits, on a CUDA GPU."
        },
    )
    audio_freeze_layers: int | None = field(
        default=None,
        metadata={"help": "With audio_mode=full, first layers that stay frozen, the embeddings with them."},
    )
    text_freeze_layers: int | None = field(
        default=None,
        metadata={"help": "With text_mode=full, first layers that stay frozen, the embeddings with them."},
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of LoRA, over its rank."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Names of the linear layers that get LoRA; the attention's of each architecture by default."
        },
    )
    context_turns: int | None = field(
        default=None, metadata={"help": "Turns of a dialogue that are read before a text; none by default."}
    )
    context_tokens: int | None = field(
        default=None, metadata={"help": "Most tokens of those turns, the last; 256 by default."}
    )
    fusion: str | None = field(
        default=None, metadata={"help": "early, late, cross_attention or hybrid; hybrid by default."}
    )
    fusion_hidden_size: int | None = field(
        default=None, metadata={"help": "Width behind the encoders; 256 by default."}
    )
    audio_layer_mix: str | None = field(
        default=None,
        metadata={"help": f"What is read of a new audio encoder's layers: {LAYER_MIXES}; the first by default."},
    )
    text_layer_mix: str | None = field(
        default=None,
        metadata={"help": f"What is read of a new text encoder's layers: {LAYER_MIXES}; the first by default."},
    )
    text_pooling: str | None = field(
        default=None, metadata={"help": f"How a new text encoder's tokens become one: {POOLINGS}; mean by default."}
    )
    text_head: str = field(
        default="linear",
        metadata={
            "help": f"What answers for a text: {TEXT_HEADS}; label_words is the likelihood that a causal language "
            "model gives to each label's word, after the prompt."
        },
    )
    label_words: list[str] = field(
        default_factory=list, metadata={"help": "Words for labels, as in happy=joyful; the labels by default."}
    )
    prompt: str | None = field(
        default=None,
        metadata={
            "help": f"What stands behind every text; nothing by default, and {PROMPT!r} with text_head=label_words."
        },
    )
    fusion_dropout: float = field(default=0.1, metadata={"help": "Dropout behind the encoders."})
    modality_dropout: float = field(
        default=0.0, metadata={"help": "How often a sample with both modalities loses one of them, in training."}
    )
    modality_loss_weight: float = field(default=0.3, metadata={"help": "Weight of each modality's own loss."})
    class_weights: str = field(
        default="none", metadata={"help": "balanced: a label weighs the more in the loss, the rarer it is; or none."}
    )
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of the target spread over all labels."})
    focal_gamma: float = field(default=0.0, metadata={"help": "Exponent of the focal loss; 0 is cross-entropy."})
    loudness_dbfs: float = field(default=-23.0, metadata={"help": "RMS level that every clip is brought to."})
    trim_db: float | None = field(
        default=None,
        metadata={"help": "Leave out a clip's beginning and end that are softer than its loudest part by so many dB."},
    )
    stored_dtype: str = field(
        default="float32",
        metadata={"help": f"Precision that the encoders are rounded to and stored in: {STORED_DTYPES}."},
    )

    def __post_init__(self) -> None:
        for name, valid in (
            ("audio_mode", AUDIO_MODES),
            ("text_mode", TEXT_MODES),
            ("text_head", TEXT_HEADS),
            ("class_weights", CLASS_WEIGHTS),
            ("stored_dtype", STORED_DTYPES),
        ):
            if getattr(self, name) not in valid:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {valid}.")
        encoders = {"audio_encoder": self.audio_encoder, "text_encoder": self.text_encoder}
        given = {name: value for name, value in encoders.items() if value is not None}
        if self.model_name_or_path is not None and given:
            raise ValueError(
                f"model_name_or_path={self.model_name_or_path} contradicts {given}; a model has its encoders already."
            )
        if self.model_name_or_path is None and not given:
            raise ValueError("Give audio_encoder, text_encoder or both, or a model_name_or_path to train on.")
        if self.model_name_or_path is not None:
            settled = (
                "fusion",
                "fusion_hidden_size",
                "audio_layer_mix",
                "text_layer_mix",
                "text_pooling",
                "trim_db",
                "context_turns",
                "context_tokens",
                "prompt",
            )
            for name in settled:
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name}={getattr(self, name)} contradicts model_name_or_path={self.model_name_or_path}; a "
                        "model has its own already."
                    )
        for name, encoder in (
            ("audio_layers", "audio_encoder"),
            ("audio_layer_mix", "audio_encoder"),
            ("trim_db", "audio_encoder"),
            ("text_layer_mix", "text_encoder"),
            ("text_pooling", "text_encoder"),
            ("context_turns", "text_encoder"),
            ("context_tokens", "text_encoder"),
            ("prompt", "text_encoder"),
        ):
            if getattr(self, name) is not None and getattr(self, encoder) is None:
                raise ValueError(f"{name}={getattr(self, name)} contradicts {encoder}=None; it needs one.")
        for modality in ("audio", "text"):
            mode, frozen = getattr(self, f"{modality}_mode"), getattr(self, f"{modality}_freeze_layers")
            if frozen is not None and mode != "full":
                raise ValueError(
                    f"{modality}_freeze_layers={frozen} contradicts {modality}_mode={mode}; it needs full."
                )
        if self.text_head == "label_words" and self.text_encoder is None:
            raise ValueError("text_head=label_words contradicts text_encoder=None; it needs a causal language model.")
        if self.label_words and self.text_head != "label_words":
            raise ValueError(f"label_words={self.label_words} contradicts text_head={self.text_head}.")
        if bad := [pair for pair in self.label_words if pair.count("=") != 1]:
            raise ValueError(f"label_words={bad} must be written as label=word.")
        if self.text_mode == "qlora" and self.text_encoder is None:
            raise ValueError("text_mode=qlora contradicts text_encoder=None; it needs one, read in 4 bits.")
        if self.lora_target_modules and not any(self.is_adapted(modality) for modality in ("audio", "text")):
            raise ValueError(
                f"lora_target_modules={self.lora_target_modules} contradicts audio_mode={self.audio_mode} and "
                f"text_mode={self.text_mode}; one of them must be lora."
            )

    def mode_of(self, modality: str) -> str:
        """How the tower of `modality` is trained, one of `TEXT_MODES`."""
        return {"audio": self.audio_mode, "text": self.text_mode}[modality]

    def is_adapted(self, modality: str) -> bool:
        """Whether the tower of `modality` gets LoRA."""
        return self.mode_of(modality) in ("lora", "qlora")

    def freeze_layers_of(self, modality: str) -> int | None:
        """How many first layers of the tower of `modality` stay frozen."""
        return {"audio": self.audio_freeze_layers, "text": self.text_freeze_layers}[modality]


@dataclass
class DataArguments:
    """The rows to train on, and how they are mixed."""

    data_dir: str = field(default="data", metadata={"help": "Folder that holds the known corpora."})
    corpora: list[str] = field(
        default_factory=list,
        metadata={"help": "Known corpora, tables (CSV, TSV, JSON Lines, Parquet), audiofolders or Hub datasets."},
    )
    corpus_weights: list[float] = field(
        default_factory=list,
        metadata={
            "help": "How often an epoch goes through each of corpora; 0.5 draws half, 0 nothing but texts for pairs."
        },
    )
    columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns of your tables, as in label=emotion audio=path."}
    )
    label_map: list[str] = field(default_factory=list, metadata={"help": "Their labels, as in excited=happy."})
    labels: list[str] = field(default_factory=lambda: list(EMOTIONS), metadata={"help": "The labels to tell apart."})
    fold: int | None = field(default=None, metadata={"help": "Fold of a corpus' cross-validation, counted from 1."})
    dev_share: float = field(
        default=0.0, metadata={"help": "Share of the speakers to set aside where a source has no development part."}
    )
    leak_columns: list[str] = field(
        default_factory=lambda: ["speaker"],
        metadata={"help": f"What may not stand on two sides of a split: some of {LEAK_COLUMNS}."},
    )
    allow_leaks: bool = field(default=False, metadata={"help": "Train although a speaker stands on two sides."})
    pair_probability: float = field(
        default=0.0,
        metadata={"help": "How often a voice without words is given a random text of its label (simulated pairs)."},
    )
    blank_probability: float = field(
        default=0.0,
        metadata={"help": "How often the voice beside a text is noise alone, so that the fusion learns to doubt it."},
    )
    context_dropout: float = field(
        default=0.0,
        metadata={"help": "How often a text comes without its speaker and the turns before it, in training."},
    )
    cache_states: bool = field(
        default=True, metadata={"help": "Keep a frozen encoder's states on disk instead of computing them again."}
    )
    cache_dir: str = field(default="runs/features", metadata={"help": "Where they are kept."})
    streaming: bool = field(default=False, metadata={"help": "Read training rows as they come, in bounded memory."})

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("corpora is empty; name a corpus, a table, an audiofolder or a dataset of the Hub.")
        self.corpus_weights = self.corpus_weights or [1.0] * len(self.corpora)
        if (
            len(self.corpus_weights) != len(self.corpora)
            or min(self.corpus_weights) < 0
            or not any(self.corpus_weights)
        ):
            raise ValueError(
                f"corpus_weights={self.corpus_weights} must have a number for each of corpora={self.corpora}, none "
                "negative and not all 0."
            )
        for name in ("pair_probability", "blank_probability", "context_dropout", "dev_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if unknown := set(self.leak_columns) - set(LEAK_COLUMNS):
            raise ValueError(f"leak_columns={sorted(unknown)} is unknown; choose some of {LEAK_COLUMNS}.")
        for name in ("pair_probability", "blank_probability", "dev_share"):
            if self.streaming and getattr(self, name) > 0:
                raise ValueError(f"streaming=True contradicts {name}={getattr(self, name)}, which needs all rows.")
        for name in ("columns", "label_map"):
            if bad := [pair for pair in getattr(self, name) if pair.count("=") != 1]:
                raise ValueError(
                    f"{name}={bad} must be written as ours=theirs."
                    if name == "columns"
                    else f"{name}={bad} must be written as theirs=ours."
                )
        known = [corpus for corpus in self.corpora if corpus in CORPORA]
        if self.fold is not None and not any(CORPORA[corpus].folds for corpus in known):
            raise ValueError(f"fold={self.fold} contradicts corpora={self.corpora}; none of them has folds.")
        if self.columns and len(known) == len(self.corpora):
            raise ValueError(f"columns={self.columns} contradicts corpora={self.corpora}, whose columns are known.")


@dataclass
class EmotionTrainingArguments(TrainingArguments):
    """The `transformers` TrainingArguments, with this field's defaults and a learning rate for the new parts.

    `learning_rate` is that of the encoders.
    """

    learning_rate: float = field(default=5e-5, metadata={"help": "AdamW's learning rate for the encoders."})
    head_learning_rate: float = field(
        default=5e-4, metadata={"help": "AdamW's learning rate for all that stands behind the encoders."}
    )
    warmup_steps: float = field(default=100, metadata={"help": "Steps of linear warm-up, or their share if below 1."})
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "group_by_length batches clips of like length, random does not, sequential keeps the order."
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better metric_for_best_model."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: rows become inputs later."})
    label_names: list[str] | None = field(default_factory=lambda: ["labels"], metadata={"help": "Leave as it is."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Must stay off: every parameter takes part in every step."}
    )

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None and not self.load_best_model_at_end:
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} contradicts load_best_model_at_end=False; "
                "set the latter, with a metric_for_best_model."
            )
        if self.train_sampling_strategy not in SAMPLING_STRATEGIES:
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} is unknown here; choose one of "
                f"{SAMPLING_STRATEGIES}."
            )
        if self.label_smoothing_factor > 0:
            raise ValueError(
                f"label_smoothing_factor={self.label_smoothing_factor} knows nothing of labels that a corpus lacks; "
                "set label_smoothing."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns=True would remove the rows' audio and text; leave it False.")
        super().__post_init__()


Arguments = tuple[ModelArguments, DataArguments, Augmentation, EmotionTrainingArguments]


def parse_arguments(argv: list[str]) -> Arguments:
    """Reads `CONFIG.yaml --flag value ...`; flags win over the file.

    Raises:
        ValueError: If the file or a flag names an option that does not exist, or two options contradict each other.
    """
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, Augmentation, EmotionTrainingArguments), allow_abbrev=False
    )
    parser.usage = "train.py CONFIG.yaml [--option value ...]"
    if argv and not argv[0].startswith("-"):
        with open(argv[0], encoding="utf-8") as file:
            options = yaml.safe_load(file)
        argv = [flag for name, value in options.items() for flag in _as_flags(name, value)] + argv[1:]
    arguments = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    _refuse_contradictions(*arguments)
    return arguments


def _refuse_contradictions(
    model: ModelArguments, data: DataArguments, augmentation: Augmentation, training: EmotionTrainingArguments
) -> None:
    changes = {**vars(augmentation), "blank_probability": data.blank_probability}
    augmented = [name for name, value in changes.items() if name.endswith("_probability") and value > 0]
    if augmented and model.audio_mode == "frozen" and data.cache_states and not data.streaming:
        raise ValueError(
            f"{augmented[0]} contradicts audio_mode=frozen with cache_states=True: kept states cannot be augmented; "
            "set cache_states to False."
        )
    if data.context_dropout > 0 and model.text_mode == "frozen" and data.cache_states and not data.streaming:
        raise ValueError(
            f"context_dropout={data.context_dropout} contradicts text_mode=frozen with cache_states=True: kept states "
            "have read the context; set cache_states to False."
        )
    if training.activation_checkpointing and model.audio_mode == model.text_mode == "frozen":
        raise ValueError("activation_checkpointing=True contradicts audio_mode=frozen and text_mode=frozen.")
    if model.model_name_or_path is None and None in (model.audio_encoder, model.text_encoder):
        absent = "audio_encoder" if model.audio_encoder is None else "text_encoder"
        for name, value in (
            ("pair_probability", data.pair_probability),
            ("blank_probability", data.blank_probability),
            ("modality_dropout", model.modality_dropout),
        ):
            if value > 0:
                raise ValueError(f"{name}={value} contradicts {absent}=None; it needs both encoders.")
    if data.streaming and model.class_weights != "none":
        raise ValueError(f"streaming=True contradicts class_weights={model.class_weights}, which counts all rows.")
    if data.streaming and training.eval_strategy != "no":
        raise ValueError(
            f"streaming=True contradicts eval_strategy={training.eval_strategy.value}: only training rows are "
            "streamed; set it to no, and score the model with eval.py."
        )
    if data.streaming and training.max_steps <= 0:
        raise ValueError(
            f"streaming=True contradicts max_steps={training.max_steps}: a stream has no length; say how many steps."
        )


def _as_flags(name: str, value: object) -> list[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *(json.dumps(value) if isinstance(value, dict) else str(value) for value in values)]
