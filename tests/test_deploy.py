"""The examples of docs/deploy.md run, and its tables list all settings, paths and metrics."""

import json
import re
import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from running import running
from test_docs import blocks_of, commands_of, matches, run

from mmemo.serving.settings import PREFIX, ServiceSettings


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy.md"
ADDRESS = "127.0.0.1:8000"
SUBTITLES = next(block.code for block in blocks_of(ROOT / "docs" / "timelines.md") if block.title == "call.srt")
CHROMIUM = shutil.which("chromium")
# Sends the microphone with a function of the page until there is a prediction, for at most a minute.
IN_THE_BROWSER = """
async ([code, name, address]) => {
  const socket = new WebSocket(address);
  const messages = [];
  socket.onmessage = ({ data }) => messages.push(JSON.parse(data));
  await new Promise((opened) => (socket.onopen = opened));
  const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
  new Function(`${code}; return ${name}`)()(microphone, socket);
  const isNeutral = ({ label }) => label === "neutral";
  for (let i = 0; i < 1200 && !messages.some(isNeutral); i++) await new Promise((passed) => setTimeout(passed, 50));
  const closed = new Promise((closed) => (socket.onclose = closed));
  socket.send('{"type": "end"}');
  await closed;
  return messages;
}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", workers=1) as service:
        yield service


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the page uses."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    neutral, angry, sad = (
        soundfile.read(ROOT / "examples" / "audio" / f"{name}.flac")[0] for name in ("09a05Nb", "03b01Wa", "14a04Tc")
    )
    pause = np.zeros(9_600)  # 0.6 s
    soundfile.write(tmp_path / "call.wav", np.concatenate([neutral, pause, angry, pause, sad]), 16_000)
    (tmp_path / "call.srt").write_text(SUBTITLES)
    monkeypatch.chdir(tmp_path)


def test_its_python_gives_the_output_shown(service, folder):
    namespace = {}
    blocks = [block for block in blocks_of(PAGE) if block.language == "python"]
    for block in blocks:
        run(replace(block, code=block.code.replace(ADDRESS, service.address.removeprefix("http://"))), namespace)
    assert len(blocks) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_its_curl_gives_the_output_shown(service, folder):
    shown = [
        (command, output)
        for block in blocks_of(PAGE)
        if block.language == "console"
        for _, command, output in commands_of(block)
        if command.startswith("curl")
    ]
    for command, output in shown:
        command = command.replace(ADDRESS, service.address.removeprefix("http://"))
        answer = subprocess.run(f"{command} --silent", shell=True, capture_output=True, text=True).stdout
        assert matches(output or "{...}", answer), f"{command}\ngives {answer}"
    assert len(shown) >= 5


def test_its_table_lists_all_settings():
    rows = dict(re.findall(rf"^\| `({PREFIX}\w+)` \| ([^|]*?) ?\|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    settings = ServiceSettings()
    expected = {PREFIX + field.name.upper(): getattr(settings, field.name) for field in fields(settings)}
    expected |= {f"{PREFIX}WORKERS": "cores", f"{PREFIX}MAX_BATCH_SIZE": "1 or 8"}

    as_shown = {
        name: f"{value:.15g}" if isinstance(value, float) else str(value or "") for name, value in expected.items()
    }
    assert rows == {name: "" if value == "()" else value for name, value in as_shown.items()}


def test_its_tables_list_all_paths_and_metrics(service):
    page = PAGE.read_text(encoding="utf-8")
    for path in service.get("/openapi.json").json()["paths"]:
        assert f" {path}`" in page, path
    for metric in re.findall(r"^# TYPE (mmemo_\w+) ", service.get("/metrics").text, re.MULTILINE):
        assert f"`{metric.removesuffix('_created')}" in page, metric


def test_its_log_line_has_all_fields(service):
    (line,) = [json.loads(block.code) for block in blocks_of(PAGE) if block.language == "json"]
    service.post("/predict", json={"text": ""})

    logged = [json.loads(text) for text in service.log.splitlines()]
    assert list(line) == list(next(entry for entry in logged if entry["event"] == "request"))


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("name", ["pcm", "opus"])
def test_its_javascript_works_in_a_browser(name, service, folder):
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    (code,) = [block.code for block in blocks_of(PAGE) if block.title == f"{name}.js"]
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone += [f"--use-file-for-fake-audio-capture={Path('call.wav').resolve()}"]
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", *microphone]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.goto(f"{service.address}/health")
        messages = page.evaluate(IN_THE_BROWSER, [code, f"send{name.capitalize()}", service.stream_address])
        browser.close()

    assert [messages[0]["type"], messages[-1]["type"]] == ["ready", "end"]
    assert messages[-1]["duration"] > 1
    assert "neutral" in [message["label"] for message in messages[1:-1]]
