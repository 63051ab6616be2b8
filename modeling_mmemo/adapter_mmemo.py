"""Loads a LoRA adapter as the whole model: its base, with the adapter's own configuration and weights merged into it.

Deliberate choices:
  - an adapter's folder has the `config.json` of the model that was trained, because training changes labels,
    temperatures and quantiles, and a peft adapter alone would leave them to its base;
  - the embedded model has no name on the Hub and another path on every machine, so adapters call it
    [`EMBEDDED_MODEL`], with a fingerprint of its weights as the revision;
  - an adapter that was trained on new encoders has no base model; its `config.json` names the encoders, and all other
    weights are in the adapter.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from logging import LogRecord
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file, logging

from .audio_encoder_mmemo import MMEmoAudioEncoder
from .configuration_mmemo import MMEmoAudioConfig, MMEmoConfig, MMEmoVideoConfig
from .towers_mmemo import load_tower


logger = logging.get_logger(__name__)

EMBEDDED_MODEL = "mmemo-embedded"
EMBEDDED_LICENSE = "cc-by-nc-sa-4.0"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """
    An adapter that `from_pretrained` was pointed at.

    Args:
        name (`str`): Its folder or Hub name.
        hub (`dict`): Its revision and the other options for loading from the Hub.
        settings (`dict`): Content of its `adapter_config.json`.
    """

    name: str
    hub: dict[str, Any]
    settings: dict[str, Any]

    @property
    def base(self) -> str | None:
        """Folder or Hub name of the base model; `None` if the adapter was trained on new encoders."""
        return self.settings.get("base_model_name_or_path")

    def has_config(self) -> bool:
        """Whether the adapter has a `config.json` of its own."""
        return cached_file(self.name, CONFIG_NAME, **self.hub, _raise_exceptions_for_missing_entries=False) is not None


def embedded_model() -> Path:
    """Returns the folder of the embedded model.

    Raises:
        ImportError: If the package is not installed, and only code saved with a model is running.
    """
    spec = find_spec("modeling_mmemo")
    if spec is None or spec.origin is None:
        raise ImportError(f"{EMBEDDED_MODEL!r} is the model that the package mmemo contains: pip install mmemo.")
    return Path(spec.origin).parent / "default"


def embedded_revision() -> str:
    """Returns the fingerprint of the embedded model's weights."""
    with (embedded_model() / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def reference(name: str) -> tuple[str, str | None]:
    """Returns the name by which an adapter refers to a model, and its revision if it is the embedded one."""
    if Path(name).is_dir() and Path(name).samefile(embedded_model()):
        return EMBEDDED_MODEL, embedded_revision()
    return name, None


def resolve_embedded(name: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Replaces the name of the embedded model by its folder.

    Args:
        name (`str` or `os.PathLike`): A folder or Hub name, returned unchanged unless it is [`EMBEDDED_MODEL`].
        options (`dict`): Arguments of `from_pretrained`; `revision` is the expected fingerprint.

    Raises:
        ValueError: If the installed package contains other weights.
    """
    if name != EMBEDDED_MODEL:
        return name, options
    expected, found = options.get("revision"), embedded_revision()
    if expected not in (None, found):
        raise ValueError(
            f"The adapter needs revision {expected} of the embedded model, but the installed mmemo contains {found}. "
            "Install the version of mmemo that it was trained with, or use the merged model."
        )
    return embedded_model(), {**options, "revision": None}


def find_adapter(name: Any, options: dict[str, Any]) -> Adapter | None:
    """
    Returns the adapter that `from_pretrained` was pointed at; `None` for a model.

    Args:
        name (`str` or `os.PathLike`): The folder or Hub name. For an adapter on the Hub the Auto classes pass the name
            of its base instead, and that of the adapter in `adapter_kwargs`.
        options (`dict`): Arguments of `from_pretrained`.
    """
    given = dict(options.get("adapter_kwargs") or {})
    name = str(given.pop("_adapter_model_path", name))
    hub = {option: options[option] for option in HUB_OPTIONS if options.get(option) is not None} | given
    # transformers itself loads a model that is saved together with an adapter.
    if any(Path(name).glob("model*.safetensors")):
        return None
    path = find_adapter_config_file(name, **hub)
    if path is None:
        return None
    return Adapter(name=name, hub=hub, settings=json.loads(Path(path).read_text(encoding="utf-8")))


def load_adapted(model_class: Any, adapter: Adapter, config: PreTrainedConfig | None, options: dict[str, Any]):
    """
    Loads the base model of an adapter with the adapter's configuration, and merges the adapter into it.

    Args:
        model_class (`type`): The class of the model.
        adapter (`Adapter`): The adapter.
        config (`MMEmoConfig`, *optional*): A configuration to use in place of the adapter's.
        options (`dict`): Other arguments of `from_pretrained`.

    Raises:
        ImportError: If peft is not installed.
        OSError: If the base model cannot be loaded.
        ValueError: If the adapter belongs to another class, or its weights do not fit the base model.
    """
    adapted_class = (adapter.settings.get("auto_mapping") or {}).get("base_model_class", model_class.__name__)
    if adapted_class != model_class.__name__:
        raise ValueError(f"{adapter.name} is an adapter of {adapted_class}; load it with that class.")
    options = {name: value for name, value in options.items() if name not in (*HUB_OPTIONS, "adapter_kwargs")}
    loading: dict[str, Any] = {name: options.pop(name) for name in ("dtype", "torch_dtype") if name in options}
    ignores_sizes = options.pop("ignore_mismatched_sizes", False)
    if config is None and adapter.has_config():
        config, options = MMEmoConfig.from_pretrained(
            adapter.name, return_unused_kwargs=True, **adapter.hub, **options
        )
    elif config is None:
        logger.warning(
            f"The adapter {adapter.name} has no config.json, so its labels, temperatures and quantiles are those of "
            f"its base model {adapter.base}."
        )
    base = _load_base(model_class, adapter, config, {**options, **loading})
    is_trainable = {name: parameter.requires_grad for name, parameter in base.named_parameters()}
    model = _merge(base, adapter, ignores_sizes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trainable[name])
    model.name_or_path = model.config.name_or_path = adapter.name
    return model.eval()


def _load_base(model_class: Any, adapter: Adapter, config: PreTrainedConfig | None, options: dict[str, Any]):
    """Loads the model that an adapter was trained on; weights that the adapter contains may be missing from it."""
    if adapter.base is None:
        if config is None:
            raise ValueError(
                f"{adapter.name} has neither a base model (base_model_name_or_path in adapter_config.json) nor a "
                "config.json that names its encoders. Load its base yourself, and then the adapter with peft."
            )
        return _load_encoders(model_class, adapter, config, options)
    hub = {name: value for name, value in adapter.hub.items() if name not in ("revision", "subfolder")}
    try:
        with _quiet_load_report():
            return model_class.from_pretrained(
                adapter.base,
                config=config,
                revision=adapter.settings.get("revision"),
                ignore_mismatched_sizes=True,
                **hub,
                **options,
            )
    except OSError as error:
        raise OSError(
            f"{adapter.name} is an adapter of {adapter.base}, which cannot be loaded. Set base_model_name_or_path in "
            f"its adapter_config.json to the folder or Hub name of that model. {error}"
        ) from error


def _load_encoders(model_class: Any, adapter: Adapter, config: PreTrainedConfig, options: dict[str, Any]):
    """Builds a model from the encoders that the configuration names; all other weights are newly initialised."""
    dtype = options.get("dtype") or options.get("torch_dtype")
    dtype = config.dtype or torch.float32 if dtype in (None, "auto") else dtype
    towers: dict[str, PreTrainedModel] = {}
    for modality in filter(config.has_encoder, config.modalities):
        tower_config = getattr(config, f"{modality}_config")
        source = tower_config.name_or_path
        if not source and tower_config.model_type == MMEmoVideoConfig.model_type:
            # Trained from scratch: the adapter has all its weights.
            continue
        if not source:
            raise ValueError(f"The config.json of {adapter.name} does not name its {modality} encoder.")
        source, hub = resolve_embedded(source, {"revision": adapter.settings.get("revision")})
        if AutoConfig.from_pretrained(source, **hub).model_type == MMEmoConfig.model_type:
            trained = model_class.from_pretrained(source, dtype=dtype, **hub).mmemo
            towers[modality] = getattr(trained, f"{modality}_tower")
        elif tower_config.model_type == MMEmoAudioConfig.model_type:
            towers[modality] = MMEmoAudioEncoder.from_pretrained(source, config=tower_config, dtype=dtype)
        else:
            towers[modality] = load_tower(source, dtype, modality, config=tower_config)
        # Needed for loading only; a saved model would otherwise contain local paths.
        tower_config.name_or_path = ""
    model = model_class(config, **{f"{modality}_tower": tower for modality, tower in towers.items()}).to(dtype)
    loaded = tuple(f"mmemo.{modality}_tower." for modality in towers)
    model.missing_keys_on_load = tuple(name for name in model.state_dict() if not name.startswith(loaded))
    return model


def _merge(base: Any, adapter: Adapter, ignores_sizes: bool):
    """Merges an adapter into its base model, and records the weights that neither of them has."""
    try:
        from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{adapter.name} is a LoRA adapter, which needs the package peft: pip install peft."
        ) from error

    with warnings.catch_warnings():
        # peft reads a property that transformers has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        adapted = PeftModel(base, PeftConfig.from_pretrained(adapter.name, **adapter.hub))
    weights = load_peft_weights(adapter.name, device="cpu", **adapter.hub)
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    misfits = {name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape}
    problems = {
        "lacks weights": expected.keys() - weights.keys(),
        "has unknown weights": weights.keys() - expected.keys(),
        "has weights of other sizes": set() if ignores_sizes else misfits,
    }
    for problem, names in problems.items():
        if names:
            raise ValueError(
                f"The adapter {adapter.name} {problem} ({', '.join(sorted(names)[:5])}): its files are incomplete, or "
                f"{adapter.base} is not the model that it was trained on."
            )
    set_peft_model_state_dict(adapted, weights, ignore_mismatched_sizes=ignores_sizes)
    model = adapted.merge_and_unload()
    saved = {name.removeprefix(PEFT_PREFIX) for name in weights if ".lora_" not in name}
    loaded = saved - {name.removeprefix(PEFT_PREFIX) for name in misfits}
    model.missing_keys_on_load = tuple(sorted((set(base.missing_keys_on_load) | saved) - loaded))
    return model


@contextmanager
def _quiet_load_report() -> Iterator[None]:
    """Silences the report of heads that do not fit the base model: the adapter has its own."""
    loader = logging.get_logger("transformers.modeling_utils")

    def is_no_report(record: LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    loader.addFilter(is_no_report)
    try:
        yield
    finally:
        loader.removeFilter(is_no_report)
