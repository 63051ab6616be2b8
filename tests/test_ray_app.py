"""The service on Ray Serve: its settings, its metrics, and a real application that responds as `mmemo serve` does."""

import importlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import jsonschema
import pytest
import soundfile
import yaml
from cluster_schemas import check
from fastapi import HTTPException
from ray.serve.schema import ServeDeploySchema
from running import PATIENCE_S, exchange, running

from mmemo.runtime.cores import available_cores
from mmemo.serving import ray_app
from mmemo.serving.observing import Metrics
from mmemo.serving.settings import RayServeSettings, ServiceSettings, environment_warnings, ray_serve_settings


ROOT = Path(__file__).parents[1]
CONFIGURATION = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
LIMITS = {"max_request_mib": 2, "max_pending_mib": 4}
REPLICAS = min(2, available_cores())


def deployment_of(application):
    return application._bound_deployment


def test_settings_from_arguments_and_the_environment(monkeypatch):
    monkeypatch.setenv("MMEMO_SERVE__MAX_CLIP_S", "12")
    monkeypatch.setenv("MMEMO_SERVE__IDLE_S", "5")
    monkeypatch.setenv("MMEMO_RAY__MAX_REPLICAS", "8")

    # From the command line values are text, from YAML they have types.
    service, ray = ray_serve_settings({"idle_s": "7", "min_replicas": 0, "model": None})

    assert service == ServiceSettings(workers=1, max_clip_s=12.0, idle_s=7.0)
    assert ray == RayServeSettings(min_replicas=0, max_replicas=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"worker": 2}, "worker: not a setting. Valid are idle_s, max_batch_size"),
        ({"workers": "two"}, "workers='two' must be an integer"),
        ({"workers": 1.5}, "workers='1.5' must be an integer"),
        ({"port": 80, "max_connections": 2}, "max_connections, port: Ray Serve's proxy accepts the connections"),
        (
            {"api_keys": "a"},
            "Ray Serve logs arguments; set API keys in the environment instead: MMEMO_SERVE__API_KEYS",
        ),
        ({"api_key": "a"}, "api_key: not a setting"),
        ({"min_replicas": -1}, "min_replicas=-1 must not be negative"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas=2 must be at least 1 and at least min_replicas=3"),
        ({"min_replicas": 0, "max_replicas": 0}, "max_replicas=0 must be at least 1"),
        ({"target_ongoing_requests": 0}, "target_ongoing_requests=0.0 must be positive"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ray_serve_settings(arguments)


def test_misspelt_keys_do_not_leave_the_service_open(monkeypatch):
    monkeypatch.setenv("MMEMO_SERVE__API_KEY", "secret")

    with pytest.raises(ValueError, match="MMEMO_SERVE__API_KEY is not a setting"):
        ray_serve_settings({})


def test_settings_that_have_no_effect_cause_warnings(monkeypatch):
    for name in ("SERVE__HOST", "SERVE__MAX_CONNECTIONS", "SERVE__IDLE_S", "RAY__MAX_REPLICAS", "RAY__REPLICAS"):
        monkeypatch.setenv(f"MMEMO_{name}", "1")

    unknown, connections = environment_warnings(is_on_ray=True)

    assert unknown.startswith("MMEMO_RAY__REPLICAS is ignored: it is not a setting. Valid are MMEMO_RAY__MAX_REPLICAS")
    assert connections == "MMEMO_SERVE__MAX_CONNECTIONS is ignored: Ray Serve's proxies accept the connections."
    assert environment_warnings() == [unknown]


def test_the_application_scales_by_cores_and_admits_what_the_service_does():
    deployment = deployment_of(ray_app.app({"workers": "3", "max_replicas": "9", "shutdown_s": 20}))
    settings = ServiceSettings()

    assert deployment.name == "mmemo"
    assert deployment.ray_actor_options == {"num_cpus": 3}
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (1, 9, 6)
    slots = settings.max_waiting + settings.max_videos + settings.max_recordings + settings.max_streams
    assert deployment.max_ongoing_requests > slots
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 20


def test_target_ongoing_requests():
    deployment = deployment_of(ray_app.app({"target_ongoing_requests": 7}))

    assert deployment._deployment_config.autoscaling_config.target_ongoing_requests == 7


def test_a_missing_ray_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "mmemo.serving.ray_app")

    with pytest.raises(ImportError, match=re.escape("needs ray: pip install 'mmemo[ray]'")):
        importlib.import_module("mmemo.serving.ray_app")


def test_no_other_module_imports_ray_serve():
    for path in (ROOT / "mmemo").rglob("*.py"):
        if path.name != "ray_app.py":
            code = path.read_text(encoding="utf-8")
            assert not re.search(r"(ray_app|import serve$|ray\.serve)", code, re.MULTILINE), path


class Recorder:
    """A metric of Ray that records what is reported to it."""

    def __init__(self, name, description="", boundaries=None, tag_keys=()):
        self.name, self.boundaries, self.tag_keys, self.reported = name, boundaries, tag_keys, []

    def report(self, value=1.0, tags=None):
        assert set(tags or {}) == set(self.tag_keys)
        self.reported.append((value, tags))

    observe = inc = set = report


class CountingRecorder(Recorder):
    def __init__(self, name, description="", tag_keys=()):
        super().__init__(name, description, None, tag_keys)


@pytest.fixture
def metrics(monkeypatch):
    recorders = SimpleNamespace(Histogram=Recorder, Counter=CountingRecorder, Gauge=CountingRecorder)
    monkeypatch.setattr(ray_app, "ray_metrics", recorders)
    return ray_app.RayMetrics()


def test_metrics_are_reported_to_ray(metrics):
    metrics.seconds.labels("/predict", "200").observe(0.5)
    metrics.rejects.labels("queue").inc()
    metrics.batch_size.observe(3)
    for gauge, value in ((metrics.pending, 10), (metrics.waiting, 2), (metrics.requests, 3), (metrics.streams, 4)):
        gauge.set_function(lambda value=value: value)
    metrics.publish()

    assert metrics.seconds._metric.reported == [(0.5, {"path": "/predict", "status": "200"})]
    assert metrics.rejects._metric.reported == [(1.0, {"reason": "queue"})]
    assert metrics.batch_size._metric.reported == [(3, None)]
    assert metrics.waiting._metric.reported == [(2, None)]
    assert {gauge._metric.name: gauge._metric.reported[0][0] for gauge in metrics._gauges} == {
        "mmemo_pending_bytes": 10,
        "mmemo_queue_depth": 2,
        "mmemo_requests_in_flight": 3,
        "mmemo_streams": 4,
    }


def test_metrics_have_the_names_of_the_plain_service(metrics):
    def names(metrics, name):
        return {attribute: name(value) for attribute, value in vars(metrics).items() if hasattr(value, "labels")}

    assert names(metrics, lambda metric: metric._metric.name) == names(Metrics(), lambda metric: metric._name)


def test_one_replica_does_not_speak_for_all(metrics):
    with pytest.raises(HTTPException, match="Ray exports the metrics of all replicas") as raised:
        metrics.exposition()
    assert raised.value.status_code == 404


def replica_class():
    """The class before Serve wraps it, which replicas run."""
    return ray_app.EmotionReplica.__mro__[1]


def test_a_replica_is_healthy_if_its_application_is_ready():
    published = []
    replica = SimpleNamespace(
        _app=SimpleNamespace(state=SimpleNamespace(is_ready=True)),
        _metrics=SimpleNamespace(publish=lambda: published.append(True)),
    )
    replica_class().check_health(replica)
    assert published == [True]

    replica._app.state.is_ready = False
    with pytest.raises(RuntimeError, match="starting or stopping"):
        replica_class().check_health(replica)


def strict(schema):
    """Returns a schema in which unknown fields are errors; Serve itself ignores them."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: strict(part) for name, part in schema.items()}
    return {"additionalProperties": False, **parts} if isinstance(schema.get("properties"), dict) else parts


def test_the_configuration_of_serve_is_valid():
    schema = strict(ServeDeploySchema.model_json_schema())
    check(CONFIGURATION, schema)
    ServeDeploySchema.model_validate(CONFIGURATION)

    for broken in (
        CONFIGURATION | {"http_option": {}},
        CONFIGURATION | {"http_options": {"prot": 8000}},
        CONFIGURATION | {"applications": [{**CONFIGURATION["applications"][0], "import_pth": "ray_app:app"}]},
        CONFIGURATION | {"http_options": {"port": "eight"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check(broken, schema)


def test_the_manifest_of_kuberay_has_the_same_configuration():
    manifest = yaml.safe_load((ROOT / "deploy" / "ray" / "rayservice.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == CONFIGURATION
    (application,) = CONFIGURATION["applications"]
    settings, scaling = ray_serve_settings(application["args"])

    assert application["import_path"] == f"{ray_app.__name__}:{ray_app.app.__name__}"
    # A node of the cluster has the cores of one replica, and there are as many nodes as replicas.
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) == settings.workers
    assert (group["minReplicas"], group["maxReplicas"]) == (scaling.min_replicas, scaling.max_replicas)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The application of deploy/ray/serve.yaml on a local Ray of its own: its address, log and metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (application,) = CONFIGURATION["applications"]
    arguments = application["args"] | LIMITS | {"workers": 1, "min_replicas": REPLICAS}
    configuration = CONFIGURATION | {
        "http_options": CONFIGURATION["http_options"] | {"host": "127.0.0.1", "port": port},
        "applications": [application | {"args": arguments}],
    }
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "serve.yaml").write_text(yaml.safe_dump(configuration))
    # Paths of Ray's sockets must be short.
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    environment = os.environ | {"RAY_TMPDIR": str(temporary), "RAY_AUTH_MODE": "disabled", "MMEMO_SERVE__IDLE_S": "9"}
    # By default the processes of Ray have a low priority, and starve on a machine that is busy.
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", "local", str(folder / "serve.yaml")]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    cluster = SimpleNamespace(address=f"http://127.0.0.1:{port}", log=log, temporary=temporary, process=process)
    try:
        wait_until(lambda: is_ready(cluster), cluster)
        yield cluster
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        process.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def is_ready(cluster):
    with suppress(httpx.TransportError):
        return httpx.get(f"{cluster.address}/ready", timeout=PATIENCE_S).status_code == 200
    return False


def wait_until(condition, cluster):
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not condition():
        assert cluster.process.poll() is None, cluster.log.read_text()
        assert time.monotonic() < deadline, cluster.log.read_text()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", workers=1, **LIMITS) as service:
        yield service


def send(address, request):
    method, path, arguments = request
    response = httpx.request(method, address + path, timeout=PATIENCE_S, **arguments)
    return response.status_code, response.json()


REQUESTS = {
    "form": ("POST", "/predict", {"data": {"text": "What are those bags?", "top_k": "2"}, "files": {}}),
    "text": ("POST", "/predict", {"json": {"text": "I have been waiting for an hour."}}),
    "batch": ("POST", "/predict/batch", {"json": {"items": [{"text": "Thank you!"}, {"text": ""}], "top_k": 1}}),
    "health": ("GET", "/health", {}),
    "ready": ("GET", "/ready", {}),
    "version": ("GET", "/version", {}),
    "openapi": ("GET", "/openapi.json", {}),
    "unknown path": ("GET", "/nowhere", {}),
    "malformed": ("POST", "/predict", {"content": b"{", "headers": {"content-type": "application/json"}}),
    "unknown option": ("POST", "/predict", {"json": {"text": "so", "top_k": 0}}),
    "not audio": ("POST", "/predict", {"files": {"audio_file": b"no audio"}}),
    "other type": ("POST", "/predict", {"content": b"so", "headers": {"content-type": "text/plain"}}),
    "oversize": ("POST", "/predict", {"content": bytes(3 * 2**20), "headers": {"content-type": "application/json"}}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_responses_are_those_of_the_plain_service(name, cluster, service, example_audio):
    method, path, arguments = REQUESTS[name]
    if name == "form":
        arguments = arguments | {"files": {"audio_file": example_audio.read_bytes()}}

    found, expected = (send(address, (method, path, arguments)) for address in (cluster.address, service.address))

    assert found == expected
    assert (found[0] == 413) == (name == "oversize")


@pytest.mark.slow
def test_a_timeline_is_that_of_the_plain_service(cluster, service, example_audio):
    arguments = {"files": {"audio_file": example_audio.read_bytes()}, "data": {"return_timeline": "true"}}

    found, expected = (
        send(address, ("POST", "/predict", arguments)) for address in (cluster.address, service.address)
    )

    assert found == expected and found[1]["timeline"]


def logs(cluster):
    """Returns what the driver and the processes of Ray have logged, by file."""
    files = [cluster.log, *(path for path in cluster.temporary.rglob("*") if path.suffix in (".log", ".err", ".out"))]
    return {path: path.read_text(errors="replace") for path in files}


def stream_of(address):
    return address.replace("http://", "ws://") + "/stream"


@pytest.mark.slow
def test_streams_are_those_of_the_plain_service(cluster, service, example_audio):
    samples, rate = soundfile.read(example_audio, dtype="int16")
    data = samples.tobytes()
    messages = [data[first : first + 6400] for first in range(0, len(data), 6400)]
    start = {"sampling_rate": rate}

    found, expected = (
        exchange(stream_of(address), start, [*messages, json.dumps({"type": "end"})])
        for address in (cluster.address, service.address)
    )

    assert found == expected
    assert found[1] == 1000 and sum(message["type"] == "segment" for message in found[0]) == math.ceil(
        2 * len(samples) / rate
    )


@pytest.mark.slow
def test_the_message_of_a_stream_has_a_maximum_size(cluster):
    received, code = exchange(stream_of(cluster.address), {}, [bytes(2**18 + 1)])

    assert received[-1] == {
        "type": "error",
        "detail": "A message has 262145 bytes; send at most 256 KiB in one message.",
    }
    assert code == 1009


@pytest.mark.slow
def test_a_request_has_one_id(cluster):
    response = httpx.post(f"{cluster.address}/predict", json={"text": "so glad"}, timeout=PATIENCE_S)

    (request_id,) = response.headers.get_list("x-request-id")
    wait_until(lambda: any(f'"id": "{request_id}"' in text for text in logs(cluster).values()), cluster)


@pytest.mark.slow
def test_metrics_of_all_replicas_are_exported_by_ray(cluster):
    response = httpx.get(f"{cluster.address}/metrics", timeout=PATIENCE_S)
    assert response.status_code == 404 and "scrape the metrics port" in response.json()["detail"]
    httpx.post(f"{cluster.address}/predict", json={"text": "so", "top_k": 0}, timeout=PATIENCE_S)

    def exposition(address):
        try:
            return httpx.get(f"http://{address}/metrics", timeout=PATIENCE_S).text
        except httpx.ConnectError:
            return ""  # not started yet

    def samples():
        targets = json.loads(next(cluster.temporary.rglob("prom_metrics_service_discovery.json")).read_text())
        text = "".join(exposition(address) for target in targets for address in target["targets"])
        found = re.findall(r"^ray_(mmemo_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
        return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in found]

    def are_exported():
        found = samples()
        refused = [labels for name, labels, _ in found if name == "mmemo_rejects_total"]
        return (
            any(labels["reason"] == "refused" for labels in refused)
            and any(name == "mmemo_request_seconds_bucket" and labels["status"] == "422" for name, labels, _ in found)
            and len({labels["replica"] for name, labels, _ in found if name == "mmemo_pending_bytes"}) == REPLICAS
        )

    wait_until(are_exported, cluster)
    assert {labels["deployment"] for _, labels, _ in samples()} == {"mmemo"}


@pytest.mark.slow
def test_logs_have_no_text_of_the_user(cluster):
    secret = "zzqxsecret"
    httpx.post(f"{cluster.address}/predict?name={secret}", json={"text": secret}, timeout=PATIENCE_S)
    httpx.post(f"{cluster.address}/predict?name={secret}", json={"text": "so", secret: 1}, timeout=PATIENCE_S)
    httpx.get(f"{cluster.address}/{secret}", timeout=PATIENCE_S)
    wait_until(lambda: any('"path": "other"' in text for text in logs(cluster).values()), cluster)

    assert [path for path, text in logs(cluster).items() if secret in text] == []
