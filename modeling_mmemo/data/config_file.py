"""Reads a YAML configuration file, which may override a base file."""

from pathlib import Path
from typing import Any

import yaml


BASE = "base"


def read_config(path: str | Path) -> dict[str, Any]:
    """
    Reads the options of a configuration file.

    The optional key `base` names another configuration file, relative to the folder of this one. Its options are the
    defaults; options of this file override them one by one (a list replaces the whole list, `null` removes the
    option). A base may have a base itself.

    Args:
        path (`str` or `Path`): A YAML file with a mapping of options to values.

    Returns:
        `dict[str, Any]`: The options of the file and its bases, without `base`.

    Raises:
        FileNotFoundError: If the file or one of its bases does not exist.
        ValueError: If a file does not hold a mapping, or the bases form a cycle.
    """
    return _read(Path(path), ())


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """Reads a file that `children`, the last one first in line, name as their base."""
    chain = (*children, path.resolve())
    if path.resolve() in children:
        raise ValueError(f"The base files form a cycle: {' -> '.join(map(str, chain))}. Remove one `{BASE}:` line.")
    if children and not path.is_file():
        raise FileNotFoundError(f"{children[-1]} names the base {path}, which does not exist.")
    with path.open(encoding="utf-8") as file:
        options = yaml.safe_load(file)
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold a mapping of options to values, as in `output_dir: runs/calls`.")
    base = options.pop(BASE, None)
    return options if base is None else _read(path.parent / base, chain) | options
