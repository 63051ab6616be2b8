"""
Push of a trained model, with everything needed to run it, to the Hub in one commit.

Deliberate choices:
- Everything that can fail without cost fails first: the files are checked, then the token and the repository, and only
  then graphs are exported and files uploaded.
- Nothing pushed contains a path of this machine. An adapter names its base model as others can load it.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi, ModelCard, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx
from transformers import PreTrainedConfig

from mmemo.modalities import MODALITIES
from mmemo.runtime.graph import ANALYSIS_FILE
from modeling_mmemo import MMEmoConfig, MMEmoProcessor
from modeling_mmemo.adapter_mmemo import EMBEDDED_LICENSE, EMBEDDED_MODEL, embedded_model, reference
from modeling_mmemo.hub.adapter_card import adapter_card
from modeling_mmemo.pipelines import load_pipeline


WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
RESULTS = ("*.json", "*.md", "*.png")
CARDS = ("README.md", "LICENSE.md")
ADAPTER_SETTINGS, ADAPTER_WEIGHTS = ADAPTER
PROCESSOR = "processor_config.json"
# Title of the empty card that peft writes.
EMPTY_CARD = "# Model Card for Model ID"
# Files of an earlier push that a new one replaces; other files of the repository are left alone.
REPLACED = [*WEIGHTS, "*_mmemo.py", "mmemo_*.py", "multimodal_emotion.py", "onnx/*", "results/*"]


def push(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    onnx: bool = False,
    results: str | Path | None = None,
    token: str | None = None,
    base: str | None = None,
) -> CommitInfo:
    """
    Pushes a trained model, or a LoRA adapter, to a Hub repository.

    All files are uploaded in one commit: if the push fails, the repository is unchanged, and the push can be repeated.

    Args:
        folder (`str` or `Path`): Folder of a model (of `train.py` or `save_pretrained`), or of a LoRA adapter.
        repo_id (`str`): Name of the repository, `owner/name`; created if needed.
        private (`bool`, *optional*): Whether a new repository is private.
        revision (`str`, *optional*): Branch to push to, created if needed; `main` by default.
        tag (`str`, *optional*): Tag for the commit, such as `v1.0`.
        onnx (`bool`, *optional*, defaults to `False`): Whether to add float and int8 graphs in `onnx/`.
        results (`str` or `Path`, *optional*):
            Output folder of `eval.py`, pushed as `results/`. If the model's folder has no `README.md`, a model card is
            generated from it.
        token (`str`, *optional*): Hub token; the one stored by `hf auth login` by default.
        base (`str`, *optional*):
            Hub name of the base model of an adapter. Needed if the adapter was trained on a local folder.

    Returns:
        `CommitInfo`: The commit.

    Raises:
        FileNotFoundError: If the folder has neither a model nor an adapter, or there are no results.
        PermissionError: If there is no token, or it may not write to the repository.
        ConnectionError: If the Hub cannot be reached, or the upload fails.
        ValueError: If weights are missing, the model cannot be exported, the tag exists, the repository has other
            labels, or others could not load the base model of an adapter.
        OSError: If the Hub returns another error.
    """
    folder = Path(folder)
    api = HfApi(token=token)
    with TemporaryDirectory() as name:
        stage = Path(name)
        _stage(folder, stage, onnx, results, repo_id, base)
        with _readable_errors(api, repo_id):
            repo_id = _open_repository(api, repo_id, private, revision, tag, stage)
        if onnx:
            _add_graphs(folder, stage)
        try:
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=stage,
                revision=revision,
                commit_message=f"Push {'adapter' if (stage / ADAPTER_SETTINGS).exists() else 'model'}",
                delete_patterns=REPLACED,
            )
        except Exception as error:  # the type depends on the HTTP library of the client
            raise ConnectionError(
                f"The push to {repo_id} failed, and the repository is unchanged; push again. {error}"
            ) from error
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def planned_files(
    folder: str | Path,
    repo_id: str,
    onnx: bool = False,
    results: str | Path | None = None,
    base: str | None = None,
) -> dict[str, int]:
    """
    Returns the files that [`push`] would upload, by path, and their sizes in bytes; does not contact the Hub.

    Args:
        folder, repo_id, onnx, results, base: See [`push`].

    Raises:
        FileNotFoundError, ValueError: See [`push`].
    """
    with TemporaryDirectory() as name:
        stage = Path(name)
        _stage(Path(folder), stage, onnx, results, repo_id, base)
        if onnx:
            _add_graphs(Path(folder), stage)
        files = sorted(path for path in stage.rglob("*") if path.is_file())
        return {path.relative_to(stage).as_posix(): path.stat().st_size for path in files}


@contextmanager
def _readable_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Replaces errors of the Hub client by one sentence each."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise PermissionError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.") from error
    except (OfflineModeIsEnabled, httpx.TransportError) as error:
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else str(error)
        raise ConnectionError(f"The Hub at {api.endpoint} cannot be reached ({reason}); push again online.") from error
    except HfHubHTTPError as error:
        if error.response.status_code == 401:
            raise PermissionError(
                f"The Hub at {api.endpoint} rejected the token (401): run `hf auth login` again, or correct HF_TOKEN."
            ) from error
        if error.response.status_code == 403:
            raise PermissionError(
                f"The token may not create or change {repo_id} (403): use a token with write access to it."
            ) from error
        raise


def _open_repository(
    api: HfApi, repo_id: str, private: bool | None, revision: str | None, tag: str | None, stage: Path
) -> str:
    """Checks the token, creates the repository if needed, checks its tags and labels, and returns its name."""
    user = api.whoami()
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PermissionError(
            f"The token of {user['name']} can only read; create one with write access at "
            f"{constants.ENDPOINT}/settings/tokens."
        )
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
        raise ValueError(f"{repo_id} already has a tag {tag!r}, and tags cannot be moved; choose another.")
    _check_labels(api, repo_id, revision, stage)
    return repo_id


def _stage(folder: Path, stage: Path, onnx: bool, results: str | Path | None, repo_id: str, base: str | None) -> None:
    """Collects all files to push, except graphs, in the folder `stage`."""
    is_adapter = (folder / ADAPTER_SETTINGS).is_file()
    if is_adapter and onnx:
        raise ValueError(f"{folder} is an adapter, which cannot be exported; leave onnx out, or push the model.")
    if base is not None and not is_adapter:
        raise ValueError(f"base={base} is the base model of an adapter, but {folder} is not an adapter; leave it out.")
    if is_adapter:
        _stage_adapter(folder, stage, repo_id, base)
    elif (folder / "config.json").is_file():
        _stage_model(folder, stage)
    elif folder.is_dir():
        raise FileNotFoundError(f"{folder} has neither a model (config.json) nor an adapter ({ADAPTER_SETTINGS}).")
    else:
        raise FileNotFoundError(f"The folder {folder} does not exist; pass the output folder of train.py.")
    _copy(folder, stage, CARDS if _has_card(folder) else CARDS[1:])
    if results is not None:
        _stage_results(Path(results), stage, repo_id, is_new_card=is_adapter and not _has_card(folder))


def _stage_model(folder: Path, stage: Path) -> None:
    """Collects configuration, processor, code and weights of a model."""
    emotion = load_pipeline(folder, device="cpu")
    emotion.save_pretrained(stage)
    # Weights are uploaded as stored, in their own precision.
    for path in (path for pattern in WEIGHTS for path in stage.glob(pattern)):
        path.unlink()
    _copy(folder, stage, WEIGHTS)


def _stage_adapter(folder: Path, stage: Path, repo_id: str, base: str | None) -> None:
    """Collects settings, weights, configuration, processor, code and card of an adapter."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json with the labels and temperatures of the adapter; copy that of the trained "
            "model into it."
        )
    settings = json.loads((folder / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
    local = settings["base_model_name_or_path"]
    if base is not None:
        settings |= {"base_model_name_or_path": base, "revision": None}
    elif local is not None:
        name, revision = reference(local)
        name = _public_name(name, folder, "pass its name as base (--base)")
        settings |= {"base_model_name_or_path": name, "revision": settings.get("revision") or revision}
    config = MMEmoConfig.from_pretrained(folder)
    for tower in _encoders(config):
        if tower.name_or_path:
            tower.name_or_path = _public_name(tower.name_or_path, folder, "train with its name as the encoder")
    config.save_pretrained(stage)
    if (folder / PROCESSOR).is_file():
        MMEmoProcessor.from_pretrained(folder).save_pretrained(stage)
    _copy(folder, stage, [ADAPTER_WEIGHTS])
    (stage / ADAPTER_SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    license = _stage_license(stage, settings["base_model_name_or_path"], local, config)
    if not _has_card(folder):
        text = adapter_card(config, repo_id, settings["base_model_name_or_path"], license)
        (stage / CARDS[0]).write_text(text, encoding="utf-8")


def _encoders(config: MMEmoConfig) -> list[PreTrainedConfig]:
    """Returns the configurations of the encoders of a model."""
    return [getattr(config, f"{modality}_config") for modality in MODALITIES if config.has_encoder(modality)]


def _public_name(name: str, folder: Path, remedy: str) -> str:
    """Returns the name of a model, if others can load it by that name."""
    if name != EMBEDDED_MODEL and (Path(name).exists() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ValueError(
            f"The adapter {folder} was trained on {name}, a local folder that others do not have: push that model and "
            f"{remedy}, or push the merged model instead of the adapter."
        )
    return name


def _stage_license(stage: Path, base: str | None, local: str | None, config: MMEmoConfig) -> str | None:
    """Copies the licence text of the model that an adapter was trained on, if it is here; returns its identifier."""
    if EMBEDDED_MODEL in (base, *(tower.name_or_path for tower in _encoders(config))):
        _copy(embedded_model(), stage, CARDS[1:])
        return EMBEDDED_LICENSE
    if local is None or not Path(local).is_dir():
        return None
    _copy(Path(local), stage, CARDS[1:])
    card = Path(local) / CARDS[0]
    return ModelCard.load(card).data.license if card.is_file() else None


def _has_card(folder: Path) -> bool:
    """Whether a folder has a card that somebody has written; peft writes an empty one."""
    card = folder / CARDS[0]
    return card.is_file() and EMPTY_CARD not in card.read_text(encoding="utf-8")


def _stage_results(results: Path, stage: Path, repo_id: str, is_new_card: bool) -> None:
    """Collects the figures, and writes them to a card of ours: a new one, or that of an adapter."""
    (stage / "results").mkdir()
    copied = _copy(results, stage / "results", RESULTS)
    if not copied:
        raise FileNotFoundError(f"{results} has no results; run eval.py --output_dir {results}.")
    path = results / "results.json"
    evaluated = json.loads(path.read_text(encoding="utf-8"))["model"] if path.is_file() else ""
    if evaluated and Path(evaluated).exists():
        # The evaluated model is the one that is pushed; its local path is no use to others.
        for file in (file for file in copied if file.suffix != ".png"):
            file.write_text(file.read_text(encoding="utf-8").replace(evaluated, repo_id), encoding="utf-8")
    card = stage / CARDS[0]
    if card.exists() and not is_new_card:
        return
    # Needs the packages of the evaluation, which pushing alone does not.
    from modeling_mmemo.evaluation.card import BEGIN, END, write_card

    if is_new_card:
        card.write_text(f"{card.read_text(encoding='utf-8')}\n## Results\n\n{BEGIN}\n{END}\n", encoding="utf-8")
    write_card(stage, results, name=None if is_new_card else repo_id)


def _add_graphs(folder: Path, stage: Path) -> None:
    """Exports float and int8 graphs to `onnx/`."""
    from modeling_mmemo.exporters.export_command import export_graphs

    emotion = load_pipeline(folder, device="cpu")
    with TemporaryDirectory() as exported:
        export_graphs(emotion.model, emotion.processor, exported)
        (stage / "onnx").mkdir()
        _copy(Path(exported), stage / "onnx", ("*.onnx", "*.onnx.data", ANALYSIS_FILE))


def _check_labels(api: HfApi, repo_id: str, revision: str | None, stage: Path) -> None:
    """Raises if the repository has a model with other labels, or another order, which its users rely on."""
    try:
        existing = MMEmoConfig.from_pretrained(api.hf_hub_download(repo_id, "config.json", revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError):
        return
    old, new = (list(config.id2label.values()) for config in (existing, MMEmoConfig.from_pretrained(stage)))
    if old != new:
        raise ValueError(
            f"The labels of {repo_id} are {old}, but the model has {new}: code that uses the repository would "
            "misinterpret the scores. Push to another repository, or to a new branch (--revision)."
        )


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> list[Path]:
    """Copies all files that match a pattern, and returns their new paths."""
    return [Path(shutil.copy(path, target)) for pattern in patterns for path in sorted(source.glob(pattern))]
