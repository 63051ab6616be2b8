"""A trained model to the Hub, with all that it takes to run it there and here, in one commit."""

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
# What an earlier push may have left, and a new one replaces; other files of a repository are its owner's.
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
    Pushes a folder that `train.py` or `save_pretrained` left; or an adapter, to a repository of its own.

    All goes up in one commit, so a push that breaks off leaves the repository as it was, and can be repeated.

    Args:
        folder (`str` or `Path`): Of a model, or of its LoRA adapter.
        repo_id (`str`): As `owner/name`; it is made if need be.
        private (`bool`, *optional*): Whether a repository that is made is private.
        revision (`str`, *optional*): The branch, made if need be; `main` by default.
        tag (`str`, *optional*): A name for what was pushed, such as `v1.0`.
        onnx (`bool`, *optional*, defaults to `False`): Whether to add its graphs, float and int8, in `onnx/`.
        results (`str` or `Path`, *optional*):
            The folder that `eval.py` left, which goes to `results/`; a card is made of it if the model's folder has no
            `README.md`.
        token (`str`, *optional*): Of the Hub; by default the one that `hf auth login` stored.

    Raises:
        FileNotFoundError: If the folder holds neither a model nor an adapter, or `results` no results.
        ValueError: If the model lacks weights or cannot be exported, the tag is taken, or the repository has other
            labels.
        OSError: If the Hub refuses, or the connection breaks.
    """
    folder = Path(folder)
    api = HfApi(token=token)
    with TemporaryDirectory() as name:
        stage = Path(name)
        if (folder / ADAPTER[0]).is_file():
            if onnx:
                raise ValueError(f"{folder} is an adapter, which has no graph of its own; leave onnx out.")
            _copy(folder, stage, ADAPTER)
        else:
            _stage_model(folder, stage, onnx)
        _copy(folder, stage, CARDS)
        if results is not None:
            (stage / "results").mkdir()
            if not _copy(Path(results), stage / "results", RESULTS):
                raise FileNotFoundError(f"{results} holds no results; run eval.py --output_dir {results}.")
            if not (stage / CARDS[0]).exists() and (stage / "config.json").exists():
                # Needs what evaluating needs, and pushing alone does not.
                from modeling_mmemo.evaluation.card import write_card

                write_card(stage, results, name=repo_id)
        # Refused before the upload rather than behind it.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if tag is not None and tag in {ref.name for ref in api.list_repo_refs(repo_id).tags}:
            raise ValueError(f"{repo_id} has a tag {tag!r} already, and tags stay where they are; choose another.")
        if (stage / "config.json").exists():
            _refuse_other_labels(api, repo_id, revision, stage)
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
        except Exception as error:  # what the client raises depends on its HTTP library
            raise ConnectionError(
                f"The push to {repo_id} broke off, and the repository is as it was; push again. {error}"
            ) from error
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit


def _stage_model(folder: Path, stage: Path, onnx: bool) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds neither a model (config.json) nor an adapter ({ADAPTER[0]}).")
    emotion = load_pipeline(folder, device="cpu")
    emotion.save_pretrained(stage)
    # The weights go up as they are stored, to the bit and in their precision.
    for path in (path for pattern in WEIGHTS for path in stage.glob(pattern)):
        path.unlink()
    _copy(folder, stage, WEIGHTS)
    if onnx:
        from modeling_mmemo.exporters.export_command import export_graphs

        with TemporaryDirectory() as exported:
            export_graphs(emotion.model, emotion.processor, exported)
            (stage / "onnx").mkdir()
            _copy(Path(exported), stage / "onnx", ("*.onnx", "*.onnx.data", ANALYSIS_FILE))


def _refuse_other_labels(api: HfApi, repo_id: str, revision: str | None, stage: Path) -> None:
    """The names and the order of labels are a promise to whoever has loaded the repository before."""
    try:
        there = MMEmoConfig.from_pretrained(api.hf_hub_download(repo_id, "config.json", revision=revision))
    except (EntryNotFoundError, RevisionNotFoundError):
        return
    old, new = (list(config.id2label.values()) for config in (there, MMEmoConfig.from_pretrained(stage)))
    if old != new:
        raise ValueError(
            f"{repo_id} answers {old}, and the model {new}: whoever loads it would read its scores wrongly. Push to "
            "another repository, or to a new branch (--revision)."
        )


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> list[Path]:
    """Copies the files that match; their new paths."""
    return [Path(shutil.copy(path, target)) for pattern in patterns for path in sorted(source.glob(pattern))]
