"""Runs `train.py` and `eval.py`: errors as one message with an exit status, and tracebacks only with `--debug`."""

import sys
import warnings
from collections.abc import Callable


USAGE_STATUS, ERROR_STATUS, INTERRUPTED_STATUS = 2, 1, 130


def run_script(prepare: Callable[[list[str]], Callable[[], None]], argv: list[str]) -> None:
    """
    Runs a script; an error is printed as its message, without a traceback, and exits.

    A bare flag `--debug` is not passed on; with it errors are raised. Without it warnings about deprecated functions,
    which are for developers, are hidden.

    Args:
        prepare (`Callable[[list[str]], Callable[[], None]]`):
            Parses the flags, and returns a function that does the work.
        argv (`list[str]`): The flags.

    Raises:
        SystemExit: With status 2 if `prepare` raises an error, and 1 if the work does.
    """
    rest = [flag for place, flag in enumerate(argv) if not _is_bare_debug(argv, place)]
    if len(rest) < len(argv):
        prepare(rest)()
        return
    warnings.simplefilter("ignore", FutureWarning)
    status = USAGE_STATUS
    try:
        work = prepare(rest)
        status = ERROR_STATUS
        work()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        raise SystemExit(INTERRUPTED_STATUS) from None
    except Exception as error:
        print(f"Error: {_message(error)}", file=sys.stderr)
        raise SystemExit(status) from error


def _is_bare_debug(argv: list[str], place: int) -> bool:
    """Whether a flag is `--debug` without a value; with one it is an option of `transformers.TrainingArguments`."""
    return argv[place] == "--debug" and argv[place + 1 : place + 2] in (
        [],
        *([flag] for flag in argv if flag[:1] == "-"),
    )


def _message(error: Exception) -> str:
    """Returns the message of an error that is meant for users; of any other error also its type, and what to do."""
    if isinstance(error, ModuleNotFoundError):
        return f"The package {error.name} is missing: pip install 'mmemo[train]'."
    if isinstance(error, ImportError | OSError | ValueError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (the traceback: --debug)"
