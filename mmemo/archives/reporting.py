"""What commands write to standard error: errors in one sentence, warnings, and progress."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer


# Errors whose message is meant for users.
EXPECTED_ERRORS = (ImportError, OSError, ValueError)
DEBUG_HINT = "For the traceback, run: mmemo --debug COMMAND."


def describe_error(error: Exception) -> str:
    """Returns an error as one line."""
    if isinstance(error, ModuleNotFoundError):
        everything = "mmemo[onnx,train,serve,demo]"
        return (
            f"This command needs the package {error.name}; pip install '{everything}' installs the dependencies of "
            "all commands."
        )
    message = " ".join(str(error).split())
    if isinstance(error, EXPECTED_ERRORS) and message:
        return message
    if isinstance(error, MemoryError):
        return f"There is not enough memory. {DEBUG_HINT}"
    return f"{type(error).__name__}{': ' if message else ''}{message.removesuffix('.')}. {DEBUG_HINT}"


def report_error(error: Exception, name: str | None = None) -> None:
    """Writes an error to standard error, after the name of the input that it is about."""
    message = describe_error(error)
    # As a whole word: `-`, standard input, is part of many messages.
    is_named = name is None or re.search(rf"(?<!\S){re.escape(name)}(?![^\s:;,.])", message) is not None
    typer.echo(f"Error: {message if is_named else f'{name}: {message}'}", err=True)


def warn(message: str) -> None:
    """Writes a warning to standard error."""
    typer.echo(f"Warning: {message}", err=True)


class _NamedWarnings(logging.Handler):
    """Writes warnings of this package to standard error, after the name of the input that they are about."""

    def __init__(self, name: str | None):
        super().__init__(logging.WARNING)
        self._input = name

    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage() if self._input is None else f"{self._input}: {record.getMessage()}")


@contextmanager
def warnings_about(name: str | None) -> Iterator[None]:
    """Within this context, warnings that the package logs name the input."""
    logger = logging.getLogger("mmemo")
    handler, propagate = _NamedWarnings(name), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def progress_bar(length: int, is_shown: bool = True) -> Any:
    """Returns a progress bar on standard error; hidden without a terminal."""
    return typer.progressbar(length=length, file=sys.stderr, hidden=not is_shown or not sys.stderr.isatty())
