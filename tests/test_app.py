"""The service in a process of its own, over the network."""

import asyncio
import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile
from running import PATIENCE_S, running

from mmemo.serving.app import create_app
from mmemo.serving.settings import ServiceSettings
from modeling_mmemo import load_pipeline


SRT = "1\n00:00:00,200 --> 00:00:01,000\nI am not happy.\n"
TEXT = "you are so sad"


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", exported) as service:
        yield service


@pytest.fixture(scope="module")
def client(service):
    with httpx.Client(base_url=service.address, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="module")
def twin(exported):
    """The pipeline over the same graph."""
    return load_pipeline(exported, "onnx")


@pytest.fixture(scope="module")
def clip(example_audio):
    return example_audio.read_bytes()


def close_to(answer, expected):
    """Whether a response has all fields of the expected one, with scores within 1e-5."""
    if isinstance(expected, dict):
        assert answer.keys() >= expected.keys()
        return all(close_to(answer[name], value) for name, value in expected.items())
    if isinstance(expected, (list, tuple)):
        return len(answer) == len(expected) and all(map(close_to, answer, expected))
    return answer == pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else answer == expected


def test_a_form_returns_the_prediction_of_the_pipeline(client, twin, clip, example_audio):
    response = client.post("/predict", files={"audio_file": ("a.flac", clip)}, data={"text": TEXT})

    assert response.status_code == 200
    answer = response.json()
    expected = twin({"audio": str(example_audio), "text": TEXT}, return_modality_weights=True)
    assert close_to(answer, expected)
    assert answer["label"] == expected["scores"][0]["label"]
    assert len(response.headers["x-request-id"]) == 12


@pytest.mark.parametrize(
    ("item", "options"),
    [
        ({"text": TEXT}, {"top_k": 2}),
        ({"audio": True}, {"threshold": 0.9}),
        ({"audio": True, "text": TEXT}, {}),
        ({"audio": True, "word_times": [["so", 0.1, 0.5], ["sad", 0.5, 1.0]]}, {"channel": 0}),
    ],
)
def test_json_returns_the_prediction_of_the_pipeline(client, twin, clip, example_audio, item, options):
    sent = item | ({"audio": base64.b64encode(clip).decode()} if "audio" in item else {})
    response = client.post("/predict", json=sent | options)

    item = item | ({"audio": str(example_audio)} if "audio" in item else {})
    assert response.status_code == 200
    assert close_to(response.json(), twin(item, return_modality_weights=True, **options))


@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "sentence", "top_k": 1}, {"speaker_turns": [{"speaker": "ann", "start": 0.1, "end": 1.2}]}],
)
def test_timelines_are_those_of_the_pipeline(client, twin, clip, example_audio, options):
    sent = {"audio": base64.b64encode(clip).decode(), "subtitles": SRT, "return_timeline": True, **options}
    response = client.post("/predict", json=sent)

    if "speaker_turns" in options:
        options = {"speaker_turns": [("ann", 0.1, 1.2)]}
    expected = twin({"audio": str(example_audio), "word_times": SRT}, return_timeline=True, **options)
    assert response.status_code == 200
    assert close_to(response.json(), expected)


def test_a_form_with_subtitles_and_options(client, twin, clip, example_audio):
    files = {"audio_file": ("a.flac", clip), "subtitles": ("a.srt", f"\ufeff{SRT}".encode())}
    data = {"return_timeline": "true", "top_k": "1", "text": ""}

    response = client.post("/predict", files=files, data=data)

    expected = twin({"audio": str(example_audio), "word_times": SRT}, return_timeline=True, top_k=1)
    assert close_to(response.json(), expected)


def test_a_form_with_separate_channels(client, twin, clip, example_audio, tmp_path):
    samples, rate = soundfile.read(example_audio, dtype="float32")
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([samples, samples[::-1]], axis=1), rate, subtype="FLOAT")
    data = {"return_timeline": "1", "channels": "split", "customer": "1"}

    response = client.post("/predict", files={"audio_file": path.read_bytes()}, data=data)

    assert close_to(response.json(), twin(str(path), channels="split", customer=1))


def test_a_batch_with_invalid_items(client, twin, clip):
    items = [{"text": TEXT}, {"audio": base64.b64encode(b"noise").decode()}, {"text": " "}, {"text": "i am happy"}]

    response = client.post("/predict/batch", json={"items": items, "top_k": 1})

    assert response.status_code == 200
    first, second, third, fourth = response.json()["answers"]
    assert close_to(first["scores"], twin({"text": TEXT}, top_k=1))
    assert close_to(fourth["scores"], twin({"text": "i am happy"}, top_k=1))
    assert second.keys() == third.keys() == {"detail"}
    assert "not readable audio" in second["detail"] and "both missing" in third["detail"]


def test_concurrent_requests_do_not_change_predictions(client, service, clip):
    requests = [{"text": TEXT}, {"audio": base64.b64encode(clip).decode()}, {"text": "happy"}] * 8
    alone = [client.post("/predict", json=request).json() for request in requests[:3]] * 8

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda request: service.post("/predict", json=request).json(), requests))

    assert found == alone


def test_text_may_contain_any_character(client, twin):
    for text in ("so\0 sad", "\U0001f600 so sad", "\u200b so"):
        assert close_to(client.post("/predict", json={"text": text}).json()["scores"], twin({"text": text}))


def test_a_speaker_of_a_form_may_be_called_by_a_number(client, twin, clip, example_audio):
    turns = [{"speaker": "007", "start": 0.1, "end": 1.2}, {"speaker": "8", "start": 1.2, "end": 1.5}]
    data = {"return_timeline": "1", "speaker_turns": json.dumps(turns), "customer": "007"}

    response = client.post("/predict", files={"audio_file": clip}, data=data)

    turns = [tuple(turn.values()) for turn in turns]
    assert close_to(response.json(), twin(str(example_audio), speaker_turns=turns, customer="007"))


def test_audio_may_be_a_data_url(client, clip):
    plain = base64.b64encode(clip).decode()
    lines = base64.encodebytes(clip).decode()
    url_safe = base64.urlsafe_b64encode(clip).decode().rstrip("=")
    forms = [plain, lines, url_safe, f"data:audio/flac;base64,{plain}"]

    first, *others = [client.post("/predict", json={"audio": audio}).json() for audio in forms]

    assert "scores" in first and others == [first] * 3


def test_unknown_paths_and_methods(client):
    assert client.get("/nothing").json() == {"detail": "Not Found"}
    assert client.get("/predict").status_code == 405


def test_status_paths(client, service, exported):
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    version = client.get("/version").json()
    assert version["model"] == exported.name and version["precision"] == "int8" and len(version["labels"]) == 4
    assert "swagger" in client.get("/docs").text.lower()


def test_metrics(client, service):
    count = 'mmemo_request_seconds_count{path="/predict",status="422"}'
    refused, batches = service.metric(count), service.metric("mmemo_batch_size_count")

    client.post("/predict", json={})
    client.post("/predict", json={"text": "so"})

    # A request is counted after its response.
    service.wait_until(lambda: service.metric(count) == refused + 1)
    assert service.metric("mmemo_batch_size_count") == batches + 1
    assert service.metric('mmemo_rejects_total{reason="refused"}') >= refused + 1
    service.wait_until(
        lambda: service.metric("mmemo_requests_in_flight") == service.metric("mmemo_pending_bytes") == 0
    )
    client.get("/unknown")
    service.wait_until(lambda: 'path="other"' in client.get("/metrics").text)


def test_logs_are_json_without_text_of_the_user(client, service):
    client.post("/predict", json={"text": "a secret of mine", "word_times": [["hidden", 2.0, 1.0]]})
    client.get("/another-secret")

    def requests():
        lines = [json.loads(line) for line in service.log.splitlines()]
        return [line for line in lines if line["event"] == "request"]

    service.wait_until(lambda: requests()[-1]["status"] == 404)
    assert requests()[-2]["status"] == 422 and requests()[-2]["bytes"] > 50 and requests()[-2]["path"] == "/predict"
    assert "secret" not in service.log and "hidden" not in service.log


def test_api_keys(exported, tmp_path):
    with running(tmp_path / "log", exported, api_keys="alpha-key, beta-key") as service:

        def status(**headers):
            return service.post("/predict", json={"text": "so"}, headers=headers).status_code

        assert status() == status(authorization="Bearer gamma-key") == status(authorization="beta-key") == 401
        assert status(authorization="Bearer alpha-key") == status(authorization="bEARER  beta-key") == 200
        assert service.get("/ready").status_code == 200
        assert service.metric('mmemo_rejects_total{reason="key"}') == 3
        schema = service.get("/openapi.json").json()
        assert schema["paths"]["/predict"]["post"]["security"] == [{"key": []}]
        assert "alpha-key" not in service.log and "beta-key" not in service.log


@pytest.mark.slow
def test_a_shutdown_completes_requests_in_flight(exported, example_audio, tmp_path):
    samples, rate = soundfile.read(example_audio, dtype="float32")
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(samples, 200), rate)
    with running(tmp_path / "log", exported) as service, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            service.post,
            "/predict",
            files={"audio_file": path.read_bytes()},
            data={"return_timeline": "1"},
        )
        service.wait_until(lambda: service.metric("mmemo_requests_in_flight") == 1)

        assert service.stop() == 0

        assert answer.result().status_code == 200
        assert len(answer.result().json()["timeline"]) > 100
    lines = [json.loads(line)["event"] for line in service.log.splitlines()]
    assert lines[-1].startswith("Finished server process")


@pytest.mark.slow
def test_a_shutdown_has_a_time_limit(exported, example_audio, tmp_path):
    samples, rate = soundfile.read(example_audio, dtype="float32")
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(samples, 400), rate)
    settings = {"shutdown_s": 0.1, "workers": 1, "max_recordings": 2}
    with running(tmp_path / "log", exported, **settings) as service, ThreadPoolExecutor(2) as pool:
        responses = [
            pool.submit(
                service.post,
                "/predict",
                files={"audio_file": path.read_bytes()},
                data={"return_timeline": "1", "segment_s": "0.1"},
            )
            for _ in range(2)
        ]
        service.wait_until(lambda: service.metric("mmemo_requests_in_flight") == 2)

        assert service.stop() == 0

    assert "timeout graceful shutdown exceeded" in service.log
    assert [response.result().status_code for response in responses] == [500, 500]


@pytest.mark.parametrize(
    ("request_", "what"),
    [({"text": "so"}, "2 requests"), ({"word_times": [["so", 0.1, 0.5]], "return_timeline": True}, "1 timelines")],
)
def test_requests_over_the_limits_have_a_retry_after_header(exported, request_, what):
    app = create_app(ServiceSettings(model=str(exported), workers=1, max_waiting=2, max_recordings=1))
    service, may_run = app.state.service, threading.Event()
    predict = service._predict
    service._predict = lambda *args, **options: may_run.wait() and predict(*args, **options)
    slots = service.recordings if "return_timeline" in request_ else service.clips

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            running = [asyncio.create_task(client.post("/predict", json=request_)) for _ in range(slots.limit)]
            while slots.taken < slots.limit:
                await asyncio.sleep(0)
            refused = await client.post("/predict", json=request_)
            may_run.set()
            return refused, await asyncio.gather(*running)

    refused, answers = asyncio.run(ask())
    service.close()

    assert refused.status_code == 503
    assert refused.json() == {"detail": f"{what} are in progress; try again later."}
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert [answer.status_code for answer in answers] == [200] * slots.limit


def test_an_internal_error_of_one_item_reaches_that_item_only(exported, caplog):
    app = create_app(ServiceSettings(model=str(exported), workers=1, max_batch_size=8))
    service = app.state.service
    run = service.predictor.graph.predict

    def fail_on_long_text(inputs):
        if inputs["attention_mask"].sum(axis=1).max() > 5:
            raise RuntimeError("a secret of the user")
        return run(inputs)

    service.predictor.graph.predict = fail_on_long_text

    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            items = [{"text": "so"}, {"text": "so " * 20}, {"text": "sad"}, {"text": ""}]
            return await client.post("/predict/batch", json={"items": items}), await client.post(
                "/predict", json=items[1]
            )

    batch, alone = asyncio.run(ask())
    service.close()

    assert batch.status_code == 200
    first, second, third, fourth = batch.json()["answers"]
    assert "scores" in first and "scores" in third and "both missing" in fourth["detail"]
    assert second == {"detail": "Internal error; see the log of the service."}
    assert (alone.status_code, alone.json()) == (500, second)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


def test_requests_have_a_time_limit(exported, example_audio, tmp_path):
    samples, rate = soundfile.read(example_audio, dtype="float32")
    path = tmp_path / "long.flac"
    soundfile.write(path, np.tile(samples, 300), rate)
    with running(tmp_path / "log", exported, timeout_s=0.01) as service:
        response = service.post("/predict", files={"audio_file": path.read_bytes()}, data={"return_timeline": "1"})
        assert response.status_code == 503 and "took more than 0.01 s" in response.json()["detail"]
        service.wait_until(lambda: service.metric("mmemo_requests_in_flight") == 0)


def test_aborted_uploads_free_memory_and_files(service):
    host, port = service.address.removeprefix("http://").split(":")
    before = service.open_files() + 3  # some connections of the tests
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        "Content-Length: 5000000\r\n\r\n--b\r\n"
        'Content-Disposition: form-data; name="audio_file"; filename="a.wav"\r\n\r\n'
    )
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"\0" * 2_000_000)
    service.wait_until(lambda: service.metric("mmemo_pending_bytes") == 0 and service.open_files() <= before)
    assert service.post("/predict", json={"text": "so"}).status_code == 200


def test_uploads_have_a_time_limit(exported, tmp_path):
    with running(tmp_path / "log", exported, upload_timeout_s=0.5) as service:
        host, port = service.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(1000).partition(b"\r\n")[0]


def test_many_threads(client, service):
    errors = []

    def ask():
        for _ in range(5):
            response = service.post("/predict", json={"text": "you are happy"})
            if response.status_code != 200:
                errors.append(response.text)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize(
    ("headers", "has_own_id"), [({"x-request-id": "of-the-proxy"}, False), ({}, True)], ids=["given", "missing"]
)
def test_a_proxy_may_give_requests_their_ids_and_a_prefix(exported, caplog, headers, has_own_id):
    app = create_app(ServiceSettings(model=str(exported), workers=1), id_header="x-request-id")

    async def ask():
        transport = httpx.ASGITransport(app, root_path="/prefix")
        async with httpx.AsyncClient(transport=transport, base_url="http://app/prefix") as client:
            return await client.get("/health", headers=headers)

    with caplog.at_level("INFO", "mmemo.serving"):
        response = asyncio.run(ask())
    app.state.service.close()

    assert response.status_code == 200
    (facts,) = [record.facts for record in caplog.records if record.message == "request"]
    assert facts["path"] == "/health"
    assert ("x-request-id" in response.headers) is has_own_id
    assert facts["id"] == (response.headers["x-request-id"] if has_own_id else "of-the-proxy")


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": ["happy", "so sad"], "hypothesis_template": "i am {}."},
        {"candidate_labels": "happy, so sad", "hypothesis_template": ["i am {}.", "you are {}"], "none_label": None},
        {"candidate_labels": ["sad"], "hypothesis_template": None, "threshold": 0.9},
        {"candidate_labels": None, "hypothesis_template": None},
    ],
)
def test_candidate_labels_of_json(client, twin, options):
    response = client.post("/predict", json={"text": TEXT, **options})

    given = {name: value for name, value in options.items() if value is not None or name == "none_label"}
    assert response.status_code == 200
    assert close_to(response.json(), twin({"text": TEXT}, **given, return_modality_weights=True))


def test_candidate_labels_of_forms_and_batches(client, twin, clip, example_audio):
    options = {"candidate_labels": ["happy", "so sad"], "hypothesis_template": "i am {}."}
    form = {**options, "candidate_labels": "happy, so sad", "return_timeline": "1"}

    timeline = client.post("/predict", files={"audio_file": ("a.flac", clip)}, data=form).json()
    batch = client.post("/predict/batch", json={"items": [{"text": TEXT}, {"text": ""}], **options}).json()

    assert close_to(timeline["timeline"], twin(str(example_audio), return_timeline=True, **options)["timeline"])
    assert close_to(batch["answers"][0]["scores"], twin({"text": TEXT}, **options))
    assert "both missing" in batch["answers"][1]["detail"]


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ({"candidate_labels": []}, 422, "candidate_labels is empty"),
        ({"candidate_labels": ["a", "A"]}, 422, "'a' and 'A', which are the same label"),
        ({"candidate_labels": 5}, 422, "candidate_labels: must be a string or a list of strings."),
        ({"candidate_labels": ["happy"], "coverage": 0.9}, 422, "coverage=0.9 contradicts candidate_labels"),
        ({"hypothesis_template": "i am {}."}, 422, "needs candidate_labels"),
        ({"candidate_labels": ["a" * 100_001] * 2}, 413, "candidate_labels has 200002 characters"),
        ({"candidate_labels": [f"sad {index}" for index in range(501)]}, 422, "has 501 entries"),
    ],
)
def test_invalid_candidate_labels_are_named(client, options, status, message):
    response = client.post("/predict", json={"text": TEXT, **options})

    assert (response.status_code, message in response.json()["detail"]) == (status, True), response.text


def test_the_document_describes_candidate_labels(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]

    for name in ("PredictRequest", "PredictBatchRequest", "PredictForm"):
        assert schemas[name]["properties"]["none_label"]["default"] == "none of these"
        kinds = [one["type"] for one in schemas[name]["properties"]["candidate_labels"]["anyOf"]]
        assert kinds == ["array", "string", "null"]
