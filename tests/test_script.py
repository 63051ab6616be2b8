import warnings

import pytest

from modeling_mmemo.evaluation.script import run_script


def work_that_raises(error):
    def work():
        raise error

    return lambda argv: work


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("calls.csv does not exist."), "Error: calls.csv does not exist."),
        (
            ModuleNotFoundError("No module", name="peft"),
            "Error: The package peft is missing: pip install 'mmemo[train]'.",
        ),
        (RuntimeError("out of memory"), "Error: RuntimeError: out of memory (the traceback: --debug)"),
        (KeyError("x"), "Error: KeyError: 'x' (the traceback: --debug)"),
    ],
)
def test_an_error_of_the_work_exits_with_status_1(error, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run_script(work_that_raises(error), [])

    assert exit.value.code == 1
    assert capsys.readouterr().err == message + "\n"


def test_an_error_of_the_options_exits_with_status_2(capsys):
    def prepare(argv):
        raise ValueError("limit=1 must be at least 2.")

    with pytest.raises(SystemExit) as exit:
        run_script(prepare, ["--limit", "1"])

    assert exit.value.code == 2
    assert capsys.readouterr().err == "Error: limit=1 must be at least 2.\n"


def test_an_interruption_exits_with_status_130(capsys):
    with pytest.raises(SystemExit) as exit:
        run_script(work_that_raises(KeyboardInterrupt()), [])

    assert (exit.value.code, capsys.readouterr().err) == (130, "Interrupted.\n")


@pytest.mark.parametrize("argv", [["--debug"], ["--debug", "--limit", "2"], ["--limit", "2", "--debug"]])
def test_a_bare_debug_flag_raises_the_error(argv):
    seen = []

    def prepare(rest):
        seen.append(rest)
        return lambda: 1 / 0

    with pytest.raises(ZeroDivisionError):
        run_script(prepare, argv)
    assert "--debug" not in seen[0]


def test_the_debug_option_of_transformers_is_passed_on():
    seen = []
    run_script(lambda argv: lambda: seen.append(argv), ["--debug", "underflow_overflow"])

    assert seen == [["--debug", "underflow_overflow"]]


def test_warnings_for_developers_are_hidden():
    def work():
        warnings.warn("renamed", FutureWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_script(lambda argv: work, [])
        hidden = list(caught)
        warnings.simplefilter("always")
        run_script(lambda argv: work, ["--debug"])

    assert (hidden, len(caught)) == ([], 1)
