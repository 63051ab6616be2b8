"""
The examples of docs/deploy.md run, its tables list all settings, paths and metrics, and the manifests in deploy/ are
valid and match the service.
"""

import copy
import json
import re
import shutil
import subprocess
from dataclasses import fields, replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import soundfile
from cluster_schemas import documents, validate
from running import running
from test_docs import blocks_of, commands_of, matches, run

from mmemo.serving.openapi import PATHS
from mmemo.serving.settings import PREFIX, RAY_PREFIX, RayServeSettings, ServiceSettings, environment_warnings
from modeling_mmemo import __version__


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy.md"
ADDRESS = "127.0.0.1:8000"
MANIFESTS = {
    f"{path.relative_to(ROOT / 'deploy')}:{manifest['kind']}": manifest
    for path in sorted((ROOT / "deploy").rglob("*.yaml"))
    if path.name != "serve.yaml"  # the configuration of Ray Serve; see tests/test_ray_app.py
    for manifest in documents(path)
}
PODS = {
    "kubernetes": MANIFESTS["kubernetes/deployment.yaml:Deployment"]["spec"]["template"]["spec"],
    "kserve": MANIFESTS["kserve/inferenceservice.yaml:InferenceService"]["spec"]["predictor"],
}
RAY_CLUSTER = MANIFESTS["ray/rayservice.yaml:RayService"]["spec"]["rayClusterConfig"]
RAY_PODS = [group["template"]["spec"] for group in (RAY_CLUSTER["headGroupSpec"], *RAY_CLUSTER["workerGroupSpecs"])]
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


def test_its_table_lists_all_settings_of_ray():
    page = PAGE.read_text(encoding="utf-8")
    rows = dict(re.findall(rf"^\| `({RAY_PREFIX}\w+)` \| ([^|]*?) ?\|", page, re.MULTILINE))
    defaults = {RAY_PREFIX + field.name.upper(): field.default for field in fields(RayServeSettings)}

    assert rows == {name: "2 per worker" if value is None else str(value) for name, value in defaults.items()}


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


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_match_their_schemas(name):
    validate(MANIFESTS[name])


def places(node, path=()):
    """Yields the path of every object of a manifest."""
    if isinstance(node, dict):
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_unknown_field_anywhere_breaks_a_manifest(name):
    # Objects with names of the user.
    free = {"labels", "matchLabels", "annotations", "requests", "limits", "rayStartParams"}
    found = [path for path in places(MANIFESTS[name]) if not free & set(path)]
    assert len(found) > 1
    for path in found:
        broken = copy.deepcopy(MANIFESTS[name])
        node = broken
        for key in path:
            node = node[key]
        node["replcias"] = 1
        with pytest.raises(jsonschema.ValidationError, match="replcias"):
            validate(broken)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("kubernetes/deployment.yaml:Deployment", ("spec", "template", "spec", "containers"), {}),
        ("kubernetes/autoscaling.yaml:HorizontalPodAutoscaler", ("spec", "maxReplicas"), "10"),
        ("kserve/inferenceservice.yaml:InferenceService", ("spec", "predictor", "minReplicas"), "2"),
        ("ray/rayservice.yaml:RayService", ("spec", "rayClusterConfig", "rayVersion"), 2.6),
    ],
)
def test_a_value_of_another_type_breaks_a_manifest(name, path, value):
    broken = copy.deepcopy(MANIFESTS[name])
    node = broken
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value

    with pytest.raises(jsonschema.ValidationError, match="is not of type"):
        validate(broken)


@pytest.mark.parametrize("name", PODS)
def test_pods_match_the_service_and_the_container(name, monkeypatch):
    pod, dockerfile = PODS[name], (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (container,) = pod["containers"]
    (port,) = [port["containerPort"] for port in container["ports"]]
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE).groups()
    settings = settings_of(container, monkeypatch)

    assert f"EXPOSE {port}" in dockerfile.splitlines()
    assert container["image"] == f"mmemo:{__version__}"
    assert [pod["securityContext"][key] for key in ("runAsUser", "runAsGroup")] == [int(user), int(group)]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    for probe, path in (("startupProbe", "/ready"), ("readinessProbe", "/ready"), ("livenessProbe", "/health")):
        assert container[probe]["httpGet"]["path"] == path and path in PATHS
        assert container[probe]["httpGet"]["port"] in (port, container["ports"][0].get("name"))
    stopping_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + settings.shutdown_s
    assert pod["terminationGracePeriodSeconds"] > stopping_s + 5
    (volume,) = pod["volumes"]
    assert {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]} == {"/tmp": volume["name"]}
    assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) > 2 * settings.max_pending_mib
    assert f"TMPDIR={container['volumeMounts'][0]['mountPath']}" in dockerfile


def settings_of(container, monkeypatch):
    """Returns the settings in the environment of a container; all of its variables must be settings."""
    for variable in container["env"]:
        assert variable["name"].startswith((PREFIX, RAY_PREFIX))
        monkeypatch.setenv(variable["name"], variable.get("value", "a secret"))
    assert environment_warnings() == []
    settings = ServiceSettings.from_environment()
    assert settings.api_keys == ("a secret",)
    return settings


@pytest.mark.parametrize("name", PODS)
def test_prometheus_finds_the_metrics(name):
    template = MANIFESTS["kubernetes/deployment.yaml:Deployment"]["spec"]["template"]["metadata"]
    annotations = {"kubernetes": template, "kserve": PODS["kserve"]}[name]["annotations"]
    (port,) = PODS[name]["containers"][0]["ports"]

    assert annotations["prometheus.io/path"] in PATHS
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


def test_the_objects_of_kubernetes_select_the_deployment():
    deployment = MANIFESTS["kubernetes/deployment.yaml:Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    service = MANIFESTS["kubernetes/service.yaml:Service"]["spec"]
    autoscaler = MANIFESTS["kubernetes/autoscaling.yaml:HorizontalPodAutoscaler"]["spec"]
    budget = MANIFESTS["kubernetes/autoscaling.yaml:PodDisruptionBudget"]["spec"]
    policy = MANIFESTS["kubernetes/network.yaml:NetworkPolicy"]["spec"]

    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["selector"]
    assert budget["selector"]["matchLabels"] == labels == policy["podSelector"]["matchLabels"]
    assert service["ports"][0]["targetPort"] == PODS["kubernetes"]["containers"][0]["ports"][0]["name"]
    assert autoscaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # would reset the autoscaler's number at every `kubectl apply`


def test_the_nodes_of_ray_have_one_environment_and_the_pinned_version(monkeypatch):
    (version,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    dockerfile = (ROOT / "deploy" / "ray" / "Dockerfile").read_text(encoding="utf-8")
    containers = [container for pod in RAY_PODS for container in pod["containers"]]

    assert RAY_CLUSTER["rayVersion"] == version
    assert re.search(rf"^FROM rayproject/ray:{re.escape(version)}-", dockerfile, re.MULTILINE)
    assert {container["image"] for container in containers} == {f"mmemo-ray:{__version__}"}
    assert all(container["env"] == containers[0]["env"] for container in containers)
    settings_of(containers[0], monkeypatch)
