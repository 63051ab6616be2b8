"""What a training run is told, from a YAML file and flags."""

from dataclasses import dataclass, field

import yaml
from transformers import HfArgumentParser, TrainingArguments

from modeling_mmemo.data.corpora import CORPORA


@dataclass
class ModelArguments:
    """The encoders and what joins them."""

    audio_encoder: str = field(metadata={"help": "Hub name or folder of a Whisper or mmemo_audio encoder."})
    text_encoder: str = field(metadata={"help": "Hub name or folder of a text encoder."})
    audio_layers: int | None = field(
        default=None, metadata={"help": "Keep so many first layers of the audio encoder."}
    )
    fusion: str = field(default="hybrid", metadata={"help": "early, late, cross_attention or hybrid."})
    fusion_hidden_size: int = field(default=256, metadata={"help": "Width behind the encoders."})
    fusion_dropout: float = field(default=0.1, metadata={"help": "Dropout behind the encoders."})
    modality_loss_weight: float = field(default=0.3, metadata={"help": "Weight of each modality's own loss."})
    loudness_dbfs: float = field(default=-23.0, metadata={"help": "RMS level that every clip is brought to."})


@dataclass
class DataArguments:
    """The corpora and how they are mixed."""

    data_dir: str = field(default="data", metadata={"help": "Folder that holds the corpora."})
    corpora: list[str] = field(default_factory=list, metadata={"help": f"Some of {sorted(CORPORA)}."})
    cache_dir: str = field(default="runs/features", metadata={"help": "Where the frozen encoders' states are kept."})
    repeats: list[int] = field(
        default_factory=list,
        metadata={"help": "How often an epoch goes through each corpus; once by default."},
    )
    pair_probability: float = field(
        default=0.5,
        metadata={"help": "How often a voice is given a random text of the same label (simulated pairs)."},
    )

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError(f"corpora is empty; name at least one of {sorted(CORPORA)}.")
        self.repeats = self.repeats or [1] * len(self.corpora)
        if len(self.repeats) != len(self.corpora) or min(self.repeats) < 1:
            raise ValueError(
                f"repeats={self.repeats} must have a number of at least 1 for each of corpora={self.corpora}."
            )
        if not 0 <= self.pair_probability <= 1:
            raise ValueError(f"pair_probability={self.pair_probability} is a probability in [0, 1].")


def parse_arguments(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Reads `CONFIG.yaml --flag value ...`; flags win over the file.

    Raises:
        ValueError: If the file or a flag names an option that does not exist.
    """
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments), allow_abbrev=False)
    parser.usage = "train.py CONFIG.yaml [--option value ...]"
    if argv and not argv[0].startswith("-"):
        with open(argv[0], encoding="utf-8") as file:
            options = yaml.safe_load(file)
        argv = [flag for name, value in options.items() for flag in _as_flags(name, value)] + argv[1:]
    return parser.parse_args_into_dataclasses(argv, look_for_args_file=False)


def _as_flags(name: str, value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]
