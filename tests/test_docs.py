"""The README and the pages of docs/ run: their code, with what it shows below itself, and their commands' options.

What a page may count on:
  - its blocks of Python share a namespace and run in their order, in a folder that has what pages name: the clips of
    `examples/`, `call.wav`, `stereo.wav`, every block with a `title="..."` as a file of that name, a trained model in
    `runs/calls`, its graphs in `exported`, and tiny encoders under names of the Hub; `microphone` gives `call.wav`;
  - a comment right below an expression, or a literal beside it, is what the expression gives or prints. Numbers with a
    point may be off by 0.02; `...` stands for anything. Other comments stand before an expression or behind a
    blank line;
  - `<!-- not run: REASON -->` before a block has it compiled and its imports resolved, and no more.
"""

import ast
import copy
import importlib
import io
import re
import runpy
import shlex
import shutil
import sys
import tokenize
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from markdown_it import MarkdownIt
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel
from typer.testing import CliRunner

from mmemo.cli import app
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]
TOLERANCE = 0.02

# Pages whose code takes long: this one traces a model.
SLOW_PAGES = {"export.md"}
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
TITLE = re.compile(r'title="([^"]+)"')
TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\.\.\.|\d+(?:\.\d*)?(?:e[+-]?\d+)?|\w+|\S""")
# Where words of a command are paths of this repository; others are paths of the reader.
FOLDERS = {"benchmarks", "configs", "examples", "modeling_mmemo"}


@dataclass(frozen=True)
class Block:
    """A fenced block: the page it is on, the line it begins behind, and whether it is only compiled."""

    page: str
    line: int
    language: str
    title: str | None
    code: str
    is_run: bool


@cache
def blocks_of(page):
    return blocks_in(page.read_text(encoding="utf-8"), page.name)


def blocks_in(markdown, name):
    tokens = MarkdownIt().parse(markdown)
    return [
        Block(
            page=name,
            line=token.map[0] + 1,
            language=token.info.partition(" ")[0],
            title=title[1] if (title := TITLE.search(token.info)) else None,
            code=token.content,
            is_run=not (before.type == "html_block" and NOT_RUN.fullmatch(before.content.strip())),
        )
        for before, token in zip([tokens[0], *tokens], tokens)
        if token.type == "fence"
    ]


def pages_with(*languages):
    pages = [
        pytest.param(page, marks=[pytest.mark.slow] if "python" in languages and page.name in SLOW_PAGES else [])
        for page in PAGES
        if any(block.language in languages for block in blocks_of(page))
    ]
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


@pytest.fixture(scope="module")
def material(tmp_path_factory, session_model, session_tokenizer, exported):
    """The folder that pages run in; each has a copy."""
    folder = tmp_path_factory.mktemp("material")
    (folder / "examples").symlink_to(ROOT / "examples")
    neutral, angry, sad = (
        soundfile.read(ROOT / "examples" / "audio" / f"{name}.flac")[0] for name in ("09a05Nb", "03b01Wa", "14a04Tc")
    )
    pause = np.zeros(9_600)  # 0.6 s
    call = np.concatenate([neutral, pause, angry, pause, sad])
    is_agent = np.arange(len(call)) < len(neutral)
    soundfile.write(folder / "call.wav", call, 16_000)
    soundfile.write(folder / "stereo.wav", np.stack([call * is_agent, call * ~is_agent], axis=1), 16_000)
    for block in (block for page in PAGES for block in blocks_of(page) if block.title):
        (folder / block.title).write_text(block.code, encoding="utf-8")

    session_model.save_pretrained(folder / "runs" / "calls")
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), copy.deepcopy(session_tokenizer))
    processor.save_pretrained(folder / "runs" / "calls")
    shutil.copytree(exported, folder / "exported")
    whisper = WhisperConfig(d_model=24, encoder_layers=6, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16)
    WhisperModel(whisper).save_pretrained(folder / "openai" / "whisper-base")
    minilm = BertConfig(hidden_size=24, num_hidden_layers=2, intermediate_size=16)
    BertModel(minilm).save_pretrained(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    session_tokenizer.save_pretrained(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    return folder


@pytest.fixture
def namespace(material, tmp_path, monkeypatch):
    folder = shutil.copytree(material, tmp_path / "page", symlinks=True)
    monkeypatch.chdir(folder)
    samples, _ = soundfile.read("call.wav", dtype="float32")
    return {"microphone": np.array_split(samples, 20)}


@pages_with("python")
def test_code_runs_and_gives_what_it_shows(page, namespace):
    for block in blocks_of(page):
        if block.language == "python" and block.is_run:
            run(block, namespace)
        elif block.language == "python":
            resolve_imports(block)


def run(block, namespace):
    shown = comments_of(block)
    for statement in parse(block).body:
        if not isinstance(statement, ast.Expr):
            exec(compile(ast.Module([statement], []), block.page, "exec"), namespace)
            continue
        with redirect_stdout(io.StringIO()) as printed:
            value = eval(compile(ast.Expression(statement.value), block.page, "eval"), namespace)
        expected = expected_of(statement, shown)
        given = printed.getvalue().strip() if value is None and printed.getvalue() else repr(value)
        assert expected is None or matches(expected, given), (
            f"{block.page}:{statement.lineno}: {ast.unparse(statement)} gives {given}, and the page shows {expected} "
            "(a comment that is no output stands before the expression, or behind a blank line)"
        )


def parse(block):
    """The code's tree, with the lines of the page."""
    tree = ast.parse(block.code, block.page)
    return ast.increment_lineno(tree, block.line)


def comments_of(block):
    """By line of the page the comment on it, and whether it has the line to itself."""
    tokens = tokenize.generate_tokens(io.StringIO(block.code).readline)
    return {
        token.start[0] + block.line: (token.string[1:].strip(), token.start[1] == 0)
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def expected_of(statement, shown):
    """What the comments say that an expression gives, or `None`."""
    lines = range(statement.end_lineno + 1, max(shown, default=0) + 1)
    below = list(takewhile(lambda line: shown.get(line, ("", False))[1], lines))
    if below:
        return " ".join(shown[line][0] for line in below)
    beside, _ = shown.get(statement.end_lineno, (None, False))
    try:
        ast.literal_eval(beside or "")
    except (SyntaxError, ValueError):
        return None
    return beside


def matches(expected, given):
    return _match(TOKEN.findall(expected), TOKEN.findall(given))


def _match(expected, given):
    if not expected:
        return not given
    first, *rest = expected
    if first == "...":
        return any(_match(rest, given[skipped:]) for skipped in range(len(given) + 1))
    return bool(given) and _is_same(first, given[0]) and _match(rest, given[1:])


def _is_same(expected, given):
    if expected[0].isdigit() and given[0].isdigit():
        return abs(float(expected) - float(given)) <= (TOLERANCE if "." in expected else 0)
    if expected[0] in "'\"" and given[0] in "'\"" and len(expected) > 1 < len(given):
        return ast.literal_eval(expected) == ast.literal_eval(given)
    return expected == given


def resolve_imports(block):
    for node in ast.walk(parse(block)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            exec(compile(ast.Module([node], []), block.page, "exec"), {})


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("2 / 3\n# 0.67", None),
        ("2 / 3  # 0.6", "gives 0.66"),
        ("[1, 2, 3]  # one of several\n# [1, ...]", None),
        ("[1, 2, 3]\n# [2, ...]", "gives [1, 2, 3]"),
        ("{'of': 'it'}.keys()\n# dict_keys(['of'])", None),
        ("print('two words')  # 'two words'", "gives two words"),
        ("print('two words')\n# two words", None),
        ("'a'\n# what a prose comment says", "a comment that is no output"),
        ("'a'\n\n# what a prose comment says\n'b'  # another", None),
        ("len('a')  # 2", "page.md:2: len('a') gives 1"),
    ],
)
def test_what_is_shown_is_compared(code, wrong):
    (block,) = blocks_in(f"```python\n{code}\n```", "page.md")
    if wrong is None:
        run(block, {})
    else:
        with pytest.raises(AssertionError, match=re.escape(wrong)):
            run(block, {})


def test_what_is_not_run_is_compiled_and_has_its_imports():
    blocks = "<!-- not run: needs the Hub -->\n```python\n{}\n```\n\n```python\n```"
    first, second = blocks_in(blocks.format("from pathlib import Path\n\n1 / 0"), "page.md")
    assert not first.is_run and second.is_run
    resolve_imports(first)
    with pytest.raises(ImportError, match="Road"):
        resolve_imports(blocks_in(blocks.format("from pathlib import Road"), "page.md")[0])
    with pytest.raises(SyntaxError):
        resolve_imports(blocks_in(blocks.format("1 /"), "page.md")[0])


@pages_with("console", "bash")
def test_commands_have_those_options(page, namespace):
    for block in blocks_of(page):
        if block.language in ("console", "bash"):
            for line, command, output in commands_of(block):
                check(f"{block.page}:{line}: {command}", shlex.split(command, comments=True), output)


def commands_of(block):
    """The commands of a block: each with its line on the page and the output shown below it."""
    lines = block.code.splitlines()
    prompt = "$ " if block.language == "console" else ""
    starts = [
        index
        for index, line in enumerate(lines)
        if line.startswith(prompt) and line.strip() and not (index and lines[index - 1].endswith("\\"))
    ]
    for start, stop in zip(starts, [*starts[1:], len(lines)]):
        end = start
        while lines[end].endswith("\\"):
            end += 1
        command = " ".join(line.removesuffix("\\") for line in lines[start : end + 1])
        yield block.line + start + 1, command.removeprefix(prompt), "\n".join(lines[end + 1 : stop]).strip()


def check(place, words, output=""):
    """Checks a command that is `mmemo` or runs a script of this repository; of others only what they name of it."""
    for word in words:
        assert word.partition("/")[0] not in FOLDERS or (ROOT / word).exists(), f"{place}\nthere is no {word}"
    if words[:1] == ["mmemo"]:
        check_mmemo(place, words[1:], output)
    scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
    if scripts:
        script, *given = words[scripts[0] :]
        known = help_of(script)
        if "--folds" in given:  # what follows it is for train.py
            known += help_of("train.py")
        for option in (word.partition("=")[0] for word in given if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{place}\n{script} has no {option}"


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("mmemo predict call.wav --txt hello", "No such option: --txt"),
        ("mmemo hear call.wav", "mmemo has no such command"),
        ("mmemo export", "Missing parameter: model"),
        ("accelerate launch train.py configs/none.yaml", "there is no configs/none.yaml"),
        ("python train.py --learning_rat 1", "train.py has no --learning_rat"),
        ("python eval.py --learning_rate 1", "eval.py has no --learning_rate"),
        ("python eval.py --folds configs/ravdess_folds.yaml --learning_rate 1", None),
    ],
)
def test_commands_are_checked(command, wrong):
    if wrong is None:
        check("page.md:1", command.split())
    else:
        with pytest.raises(Exception, match=wrong):
            check("page.md:1", command.split())


def check_mmemo(place, words, output):
    commands = typer.main.get_command(app).commands
    assert words and words[0] in commands, f"{place}\nmmemo has no such command; it has {sorted(commands)}"
    try:
        commands[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        error.add_note(place)
        raise
    if words[0] == "predict" and output:
        result = CliRunner().invoke(app, words)
        assert matches(output, result.output), f"{place}\ngives\n{result.output}"


@cache
def help_of(script):
    """What a script of this repository says to `--help`."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()
