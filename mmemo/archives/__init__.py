"""Predictions for many files: `mmemo predict`, `mmemo call`, and [`score`] for archives of any size."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mmemo.archives.archive_job import ArchiveSummary, score

# Imported on first access, so that `mmemo --help` does not load NumPy.
__all__ = ["ArchiveSummary", "score"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}.")
    return getattr(import_module("mmemo.archives.archive_job"), name)
