"""Push of a trained model, with everything needed to run it, to the Hub in one commit."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from mmemo.runtime.graph import ANALYSIS_FILE
from modeling_mmemo import MMEmoConfig
from modeling_mmemo.pipelines import load_pipeline


WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
RESULTS = ("*.json", "*.md", "*.png")
CARDS = ("README.md", "LICENSE.md")
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

    Returns:
        `CommitInfo`: The commit.

    Raises:
        FileNotFoundError: If the folder has neither a model nor an adapter, or there are no results.
        ValueError: If weights are missing, the model cannot be exported, the tag exists, or the repository has other
            labels.
        OSError: If the Hub returns an error, or the connection fails.
    """
    folder = Path(folder)
    api = HfApi(token=token)
    with TemporaryDirectory() as name:
        stage = Path(name)
        _stage(folder, stage, onnx, results, repo_id)
        # All checks run before the upload, so that an invalid push leaves the repository unchanged.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise ValueError(f"{repo_id} already has a tag {tag!r}, and tags cannot be moved; choose another.")
        if (stage / "config.json").exists():
            _check_labels(api, repo_id, revision, stage)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        try:
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=stage,
                revision=revision,
                commit_message=f"Push {'adapter' if (stage / ADAPTER[0]).exists() else 'model'}",
                delete_patterns=REPLACED,
            )
        except Exception as error:  # the type depends on the HTTP library of the client
            raise ConnectionError(
                f"The push to {repo_id} failed, and the repository is unchanged; push again. {error}"
            ) from error
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def _stage(folder: Path, stage: Path, onnx: bool, results: str | Path | None, repo_id: str) -> None:
    """Collects all files to push in the folder `stage`."""
    if (folder / ADAPTER[0]).is_file():
        if onnx:
            raise ValueError(f"{folder} is an adapter, which cannot be exported; leave onnx out, or push the model.")
        _copy(folder, stage, ADAPTER)
    else:
        _stage_model(folder, stage, onnx)
    _copy(folder, stage, CARDS)
    if results is None:
        return
    (stage / "results").mkdir()
    if not _copy(Path(results), stage / "results", RESULTS):
        raise FileNotFoundError(f"{results} has no results; run eval.py --output_dir {results}.")
    if not (stage / CARDS[0]).exists() and (stage / "config.json").exists():
        # Needs the packages of the evaluation, which pushing alone does not.
        from modeling_mmemo.evaluation.card import write_card

        write_card(stage, results, name=repo_id)


def _stage_model(folder: Path, stage: Path, onnx: bool) -> None:
    """Collects configuration, processor, code, weights and graphs of a model."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has neither a model (config.json) nor an adapter ({ADAPTER[0]}).")
    emotion = load_pipeline(folder, device="cpu")
    emotion.save_pretrained(stage)
    # Weights are uploaded as stored, in their own precision.
    for path in (path for pattern in WEIGHTS for path in stage.glob(pattern)):
        path.unlink()
    _copy(folder, stage, WEIGHTS)
    if onnx:
        from modeling_mmemo.exporters.export_command import export_graphs

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
