"""
Generates the code that a saved model contains, for processes in which this package is not installed.

Deliberate choices:
- The Hub loads code from one flat folder whose files import each other with `from .sibling import X`. The package has
  another layout, so the folder is generated from it: each module of ours that the model, the processor and the
  pipeline import becomes one file, and its imports of such modules become relative.
- Modules of `modeling_mmemo` keep the file names that `transformers` users expect (`configuration_mmemo.py`); modules
  of `mmemo` get their dotted name with underscores (`mmemo.audio.loading` becomes `mmemo_audio_loading.py`).
- Imports that cannot be flattened raise here, when the model is saved, instead of failing when it is loaded.
"""

import ast
import re
from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any


PACKAGES = ("mmemo", "modeling_mmemo")
# Modules that define the saved classes.
ROOTS = (
    "modeling_mmemo.audio_encoder_mmemo",
    "modeling_mmemo.feature_extraction_mmemo",
    "modeling_mmemo.modeling_mmemo",
    "modeling_mmemo.pipelines.multimodal_emotion",
    "modeling_mmemo.processing_mmemo",
)
# Arguments of `save_pretrained` for `push_to_hub=True`.
HUB_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "revision", "create_pr")


def write_remote_code(folder: str | Path) -> list[Path]:
    """
    Writes the code of the model, the processor and the pipeline to a folder, and replaces files of the same names.

    Args:
        folder (`str` or `Path`): Folder of a saved model.

    Returns:
        `list[Path]`: The files written.

    Raises:
        ValueError: See [`remote_code`].
    """
    paths = []
    for name, source in remote_code().items():
        paths.append(Path(folder) / name)
        paths[-1].write_text(source, encoding="utf-8")
    return paths


@cache
def remote_code(roots: tuple[str, ...] = ROOTS) -> dict[str, str]:
    """
    Returns the source code of the flat folder.

    Args:
        roots (`tuple[str, ...]`, *optional*): Modules to start from; what they import is added recursively.

    Returns:
        `dict[str, str]`: Source code by file name.

    Raises:
        ValueError: If a module has an import that cannot be flattened, or two modules get the same file name.
    """
    modules: dict[str, str] = {}
    files: dict[str, str] = {}
    waiting = list(roots)
    while waiting:
        module = waiting.pop()
        name = f"{flat_name(module)}.py"
        if modules.setdefault(name, module) != module:
            raise ValueError(f"{modules[name]} and {module} would both become {name}; rename one of them.")
        if name not in files:
            files[name], imported = _flatten(module)
            waiting += imported
    return dict(sorted(files.items()))


def flat_name(module: str) -> str:
    """Returns the name of a module in the flat folder."""
    package, _, rest = module.partition(".")
    return rest.rpartition(".")[2] if package == "modeling_mmemo" else module.replace(".", "_")


def _flatten(module: str) -> tuple[str, list[str]]:
    """Returns the source of a module with relative imports, and the modules of ours that it imports."""
    path = _source_path(module)
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in PACKAGES:
                    raise ValueError(
                        f"{path}:{node.lineno}: `import {alias.name}` cannot be flattened; write "
                        f"`from {alias.name} import ...`."
                    )
        elif isinstance(node, ast.ImportFrom):
            target = _absolute(module, node)
            if target.partition(".")[0] in PACKAGES:
                imported.append(target)
                written = "." * node.level + (node.module or "")
                line, count = re.subn(
                    rf"\bfrom\s+{re.escape(written)}\s+import\b",
                    f"from .{flat_name(target)} import",
                    lines[node.lineno - 1],
                )
                if count != 1:
                    raise ValueError(f"{path}:{node.lineno}: write `from {written} import` once, on one line.")
                lines[node.lineno - 1] = line
    return "".join(lines), imported


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """Returns the dotted name of the module that a `from ... import` statement imports from."""
    if not node.level:
        return node.module or ""
    parents = module.split(".")[: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _source_path(module: str) -> Path:
    """Returns the source file of a module."""
    spec = find_spec(module)
    if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
        raise ValueError(f"{module} is a package or does not exist; import names from the module that defines them.")
    return Path(spec.origin)


def saves_remote_code(saved: type) -> None:
    """
    Makes `save_pretrained` of a class also write the code; `push_to_hub` and Trainer checkpoints call it.

    Args:
        saved (`type`): A class whose `save_pretrained` takes the folder as first argument, as in `transformers`.
    """
    save: Callable[..., Any] = saved.save_pretrained  # type: ignore[attr-defined]

    @wraps(save)
    def save_pretrained(self, save_directory, *args, push_to_hub: bool = False, **kwargs):
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        saved_files = save(self, save_directory, *args, **kwargs)
        write_remote_code(save_directory)
        if push_to_hub:
            # transformers would upload before the code is written.
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)
        return saved_files

    saved.save_pretrained = save_pretrained  # type: ignore[attr-defined]
