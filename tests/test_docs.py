"""Runs the code of the README files, `CONTRIBUTING.md` and `docs/`, and compares it with the output they show.

Rules for a page:
  - Its Python blocks share a namespace and run in order, in a folder with the files that pages name: the clips of
    `examples/`, `call.wav`, `stereo.wav`, `memo.m4a` and other encodings of a clip, two of them and a truncated one in
    `inbox`, every block with a `title="..."` as a file of that name, a trained model in `runs/calls`, its graphs in
    `exported` where the code names that folder, a model with a video encoder in `runs/faces` and a video `clip.mp4`
    likewise, and tiny encoders under Hub names. `microphone` yields chunks of `call.wav`.
  - A comment directly below an expression, or a literal on the same line, is the expected value or printed output.
    Decimal numbers may differ by 0.02; `...` matches anything. Put other comments before the expression or after a
    blank line.
  - A block after `<!-- not run: REASON -->` is compiled and its imports are resolved, but it does not run.
  - Commands of `mmemo` and of the scripts of this repository must have the options shown. The output below
    `mmemo predict`, `mmemo call`, `cat` and `make demo` is compared, too, and that of `train.py` on one page.

The last tests check links, figures and the metadata files at the top of the repository.
"""

import ast
import copy
import importlib
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
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
import yaml
from encoded import CODINGS, encode
from markdown_it import MarkdownIt
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel
from typer.testing import CliRunner

import eval as evaluation
import modeling_mmemo
import train
from mmemo.cli import app
from modeling_mmemo import MMEmoFeatureExtractor, MMEmoProcessor, pipeline
from modeling_mmemo.examples import demo
from modeling_mmemo.pipelines import DEFAULT_MODEL
from modeling_mmemo.training.adapters import set_trainable
from modeling_mmemo.training.build import build_model
from modeling_mmemo.training.training_arguments import ModelArguments


ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").glob("*.md"))]
# The commands and configurations of past experiments need not exist any more.
LOG = ROOT / "docs" / "experiments.md"
# Pages whose Python code takes longest: it traces a model for ONNX, predicts long recordings and videos, or trains.
SLOW = {"calls.md", "export.md", "faces.md", "first-recordings.md", "hub.md", "timelines.md"}
TOLERANCE = 0.02

NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
TITLE = re.compile(r'title="([^"]+)"')
TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\.\.\.|\d+(?:\.\d*)?(?:e[+-]?\d+)?|\w+|\S""")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
# A figure with its interval, such as "75.8 [73.3, 79.6]".
FIGURE = re.compile(r"-?\d+\.\d \[-?\d+\.\d, -?\d+\.\d\]")
# Arguments of a command below these folders are paths of this repository; other paths are the reader's.
FOLDERS = {"benchmarks", "configs", "examples", "modeling_mmemo"}


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Args:
        page (`str`): Name of the file.
        line (`int`): Line of the opening fence, counted from 1.
        language (`str`): The first word after the fence.
        title (`str`, *optional*): The file name in `title="..."`.
        code (`str`): The content.
        is_run (`bool`): Whether the block runs, or is only compiled.
    """

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
    pages = [page for page in PAGES if page != LOG and any(block.language in languages for block in blocks_of(page))]
    slow = SLOW if "python" in languages else ()
    return pytest.mark.parametrize(
        "page",
        [pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in slow)) for page in pages],
    )


@pytest.fixture(scope="module")
def material(tmp_path_factory, session_model, session_tokenizer):
    """The folder that pages run in, without the exported model; each page gets a copy."""
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
    write_memos(folder, angry)
    for block in (block for page in PAGES for block in blocks_of(page) if block.title):
        (folder / block.title).write_text(block.code, encoding="utf-8")

    session_model.save_pretrained(folder / "runs" / "calls")
    processor = MMEmoProcessor(MMEmoFeatureExtractor(n_mels=16), copy.deepcopy(session_tokenizer))
    processor.save_pretrained(folder / "runs" / "calls")
    whisper = WhisperConfig(d_model=24, encoder_layers=6, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16)
    WhisperModel(whisper).save_pretrained(folder / "openai" / "whisper-base")
    minilm = BertConfig(hidden_size=24, num_hidden_layers=2, intermediate_size=16)
    BertModel(minilm).save_pretrained(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    session_tokenizer.save_pretrained(folder / "sentence-transformers" / "all-MiniLM-L6-v2")
    return folder


def write_memos(folder, samples):
    """Writes a clip as phones encode it, and a folder of such files, of which one is truncated."""
    soundfile.write(folder / "memo.wav", samples, 16_000)
    (folder / "inbox").mkdir()
    pcm = np.rint(samples[np.newaxis] * 32_767).astype(np.int16)
    for suffix, coding in {"m4a": "m4a, 48 kHz", "amr": "amr", "mp4": "mp4 with video"}.items():
        data = encode(pcm, 16_000, CODINGS[coding])
        (folder / f"memo.{suffix}").write_bytes(data)
        if suffix != "mp4":
            (folder / "inbox" / f"memo.{suffix}").write_bytes(data)
    (folder / "inbox" / "cut.m4a").write_bytes((folder / "memo.m4a").read_bytes()[:10_000])


@pytest.fixture
def namespace(page, material, tmp_path, monkeypatch, request):
    """The variables that a page's code starts with; the working directory is a copy of `material`."""
    folder = shutil.copytree(material, tmp_path / "page", symlinks=True)
    if any('"exported"' in block.code for block in blocks_of(page)):
        shutil.copytree(request.getfixturevalue("exported"), folder / "exported")
    if any('"runs/faces"' in block.code for block in blocks_of(page)):
        shutil.copytree(request.getfixturevalue("video_model"), folder / "runs" / "faces")
        shutil.copy(request.getfixturevalue("portrait"), folder / "clip.mp4")
    if any('"runs/calls/adapter"' in block.code for block in blocks_of(page)):
        save_adapter(folder / "runs" / "calls" / "adapter")
    monkeypatch.chdir(folder)
    samples, _ = soundfile.read("call.wav", dtype="float32")
    return {"microphone": np.array_split(samples, 20)}


def save_adapter(folder):
    """Saves an adapter of the embedded model, as a training run does."""
    args = ModelArguments(model_name_or_path=DEFAULT_MODEL)
    model, processor, new_branches = build_model(args)
    set_trainable(model, args, new_branches).save_pretrained(folder)
    processor.save_pretrained(folder)


@pages_with("python")
def test_code_runs_and_returns_the_output_shown(page, namespace):
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
            f"{block.page}:{statement.lineno}: {ast.unparse(statement)} returns {given}, but the page shows "
            f"{expected} (put a comment that is not output before the expression, or after a blank line)"
        )


def parse(block):
    """Returns the syntax tree of a block, with line numbers of the page."""
    tree = ast.parse(block.code, block.page)
    return ast.increment_lineno(tree, block.line)


def comments_of(block):
    """Maps lines of the page to their comment and whether it is alone on its line."""
    tokens = tokenize.generate_tokens(io.StringIO(block.code).readline)
    return {
        token.start[0] + block.line: (token.string[1:].strip(), token.start[1] == 0)
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def expected_of(statement, shown):
    """Returns the output that the comments show for an expression, or `None`."""
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
        ("2 / 3  # 0.6", "returns 0.66"),
        ("[1, 2, 3]  # one of several\n# [1, ...]", None),
        ("[1, 2, 3]\n# [2, ...]", "returns [1, 2, 3]"),
        ("{'of': 'it'}.keys()\n# dict_keys(['of'])", None),
        ("print('two words')  # 'two words'", "returns two words"),
        ("print('two words')\n# two words", None),
        ("'a'\n# a comment in prose", "a comment that is not output"),
        ("'a'\n\n# a comment in prose\n'b'  # another", None),
        ("len('a')  # 2", "page.md:2: len('a') returns 1"),
    ],
)
def test_shown_output_is_compared(code, wrong):
    (block,) = blocks_in(f"```python\n{code}\n```", "page.md")
    if wrong is None:
        run(block, {})
    else:
        with pytest.raises(AssertionError, match=re.escape(wrong)):
            run(block, {})


def test_a_block_that_does_not_run_is_compiled_and_its_imports_are_resolved():
    blocks = "<!-- not run: needs the Hub -->\n```python\n{}\n```\n\n```python\n```"
    first, second = blocks_in(blocks.format("from pathlib import Path\n\n1 / 0"), "page.md")
    assert not first.is_run and second.is_run
    resolve_imports(first)
    with pytest.raises(ImportError, match="Road"):
        resolve_imports(blocks_in(blocks.format("from pathlib import Road"), "page.md")[0])
    with pytest.raises(SyntaxError):
        resolve_imports(blocks_in(blocks.format("1 /"), "page.md")[0])


@pages_with("console", "bash")
def test_commands_have_the_options_shown(page, namespace):
    for block in blocks_of(page):
        if block.language in ("console", "bash"):
            for line, command, output in commands_of(block):
                check(f"{block.page}:{line}: {command}", shlex.split(command, comments=True), output)


def commands_of(block):
    """Yields the commands of a block: line on the page, command, output shown below it."""
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
    """Checks a command of `mmemo`, `cat`, `make demo` or a script of this repository; of others only their paths."""
    for word in words:
        assert word.partition("/")[0] not in FOLDERS or (ROOT / word).exists(), f"{place}\n{word} does not exist"
    if words[:1] == ["mmemo"]:
        check_mmemo(place, words[1:], output)
    if words[:1] == ["cat"]:
        content = Path(words[1]).read_text(encoding="utf-8")
        assert matches(output, content), f"{place}\nprints\n{content}"
    if words == ["make", "demo"] and output:
        with redirect_stdout(io.StringIO()) as printed:
            demo.main()
        assert matches(output, printed.getvalue()), f"{place}\nprints\n{printed.getvalue()}"
    scripts = [index for index, word in enumerate(words) if word.endswith(".py")]
    if scripts:
        script, *given = words[scripts[0] :]
        known = help_of(script)
        if "--folds" in given:  # later options are for train.py
            known += help_of("train.py")
        for option in (word.partition("=")[0] for word in given if word.startswith("--")):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", known), f"{place}\n{script} has no option {option}"


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("mmemo predict call.wav --txt hello", "No such option: --txt"),
        ("mmemo hear call.wav", "unknown command; mmemo has"),
        ("mmemo export", "Missing parameter: model"),
        ("accelerate launch train.py configs/none.yaml", "configs/none.yaml does not exist"),
        ("python train.py --learning_rat 1", "train.py has no option --learning_rat"),
        ("python eval.py --learning_rate 1", "eval.py has no option --learning_rate"),
        ("python eval.py --folds configs/ravdess_folds.yaml --learning_rate 1", None),
    ],
)
def test_wrong_commands_are_found(command, wrong):
    if wrong is None:
        check("page.md:1", command.split())
    else:
        with pytest.raises(Exception, match=wrong):
            check("page.md:1", command.split())


def check_mmemo(place, words, output):
    commands = typer.main.get_command(app).commands
    assert words and words[0] in commands, f"{place}\nunknown command; mmemo has {sorted(commands)}"
    try:
        commands[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        error.add_note(place)
        raise
    if words[0] in ("predict", "call") and output:
        result = CliRunner().invoke(app, words)
        assert matches(output, result.output), f"{place}\nprints\n{result.output}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "docs" / "first-recordings.md"], ids=lambda page: page.name)
def test_own_labels_are_trained_evaluated_and_described_by_the_commands_shown(page, namespace):
    commands = [command for block in blocks_of(page) if "train.py" in block.code for command in commands_of(block)]
    shown = {words[1]: (words[2:], output) for _, command, output in commands if (words := shlex.split(command))}

    for script, main in {"train.py": train.main, "eval.py": evaluation.main}.items():
        flags, output = shown[script]
        with redirect_stdout(io.StringIO()) as printed:
            main([str(ROOT / flag) if flag.partition("/")[0] in FOLDERS else flag for flag in flags])
        assert matches(output, printed.getvalue()), printed.getvalue()
    flags, output = shown["card"]
    result = CliRunner().invoke(app, ["card", *flags])

    assert matches(output, result.output), result.output
    labels = pipeline("multimodal-emotion", model="runs/own").model.config.label2id
    assert list(labels) == ["annoyed", "calm", "worried"]
    assert "own, dev part" in Path("runs/own/README.md").read_text(encoding="utf-8")


@cache
def help_of(script):
    """Returns the `--help` of a script of this repository."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("page", TOP, ids=lambda page: page.name)
def test_links_to_files_of_the_repository_exist(page):
    links = LINK.findall(page.read_text(encoding="utf-8"))

    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_figures_of_the_readme_are_recorded_results(name):
    recorded = set()
    for path in (ROOT / "results").glob("*/results.json"):
        recorded.update(figures_in(json.loads(path.read_text(encoding="utf-8"))))

    shown = FIGURE.findall((ROOT / name).read_text(encoding="utf-8"))

    assert len(shown) > 5 and not set(shown) - recorded


def figures_in(results):
    """Yields every value of `results.json` that has an interval, in percent."""
    if isinstance(results, dict) and results.keys() >= {"value", "interval"}:
        low, high = results["interval"]
        yield f"{100 * results['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    elif isinstance(results, dict | list):
        for part in results.values() if isinstance(results, dict) else results:
            yield from figures_in(part)


def test_the_readme_fits_on_a_few_screens_and_opens_with_the_licence_of_the_weights():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= 150
    assert "CC BY-NC-SA 4.0" in "\n".join(lines[:40])


def test_every_page_is_in_the_navigation():
    navigation = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]

    shown = [path for entry in navigation for path in entry.values()]

    assert sorted(shown) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_pre_commit_configuration_is_valid():
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))

    hooks = [hook["id"] for repository in configuration["repos"] for hook in repository["hooks"]]
    assert {"ruff-check", "ruff-format", "codespell"} <= set(hooks)
    revisions = {repository["repo"].rpartition("/")[2]: repository["rev"] for repository in configuration["repos"]}
    ruff = revisions["ruff-pre-commit"].removeprefix("v")
    assert f"ruff=={ruff}" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_the_citation_is_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format"]

    result = subprocess.run([*command, ROOT / "CITATION.cff"], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == modeling_mmemo.__version__
