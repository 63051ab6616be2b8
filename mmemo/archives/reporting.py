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
# Different warnings that are kept about one input: those of its windows may be thousands.
MAX_WARNINGS = 20


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


class _CollectedWarnings(logging.Handler):
    """Appends warnings of this package to a list, each once, instead of writing them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages and len(self.messages) < MAX_WARNINGS:
            self.messages.append(message)


@contextmanager
def warnings_about(name: str | None) -> Iterator[None]:
    """Within this context, warnings that the package logs name the input."""
    with _handled_by(_NamedWarnings(name)):
        yield


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Within this context, warnings that the package logs are appended to the list, the first `MAX_WARNINGS` of them,
    and not written."""
    handler = _CollectedWarnings()
    with _handled_by(handler):
        yield handler.messages


@contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    """Within this context, a handler receives what the package logs, and no other handler does."""
    logger = logging.getLogger("mmemo")
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def progress_bar(length: int, is_shown: bool = True) -> Any:
    """Returns a progress bar on standard error; hidden without a terminal."""
    return typer.progressbar(length=length, file=sys.stderr, hidden=not is_shown or not sys.stderr.isatty())
