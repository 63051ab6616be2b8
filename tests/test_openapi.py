"""The service against what it says of itself: requests made of its OpenAPI, and of what its OpenAPI forbids."""

import json

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from running import running
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)


CHECKS = (
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)


MODELS = {"/predict": "PredictRequest", "/predict/batch": "BatchRequest"}


@pytest.fixture(scope="module")
def service(exported, tmp_path_factory):
    with running(tmp_path_factory.mktemp("service") / "log", exported) as service:
        yield service


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in ("/predict", "/predict/batch", "/health", "/ready", "/version")),
        *((path, GenerationMode.NEGATIVE) for path in ("/predict", "/predict/batch")),
    ],
)
def test_answers_are_what_it_says(service, path, mode):
    api = schemathesis.openapi.from_url(f"{service.address}/openapi.json")
    method = "POST" if path.startswith("/predict") else "GET"

    @settings(
        max_examples=100 if method == "POST" else 5,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call_and_validate(checks=CHECKS)
        if response.status_code == 200 and case.media_type == "application/json":
            schema = {"$ref": f"#/components/schemas/{MODELS[path]}", "components": api.raw_schema["components"]}
            jsonschema_rs.validate(schema, json.loads(response.request.body))

    ask()


def test_its_examples_work(service):
    document = httpx.get(f"{service.address}/openapi.json").json()
    components = document["components"]["schemas"]
    for path, model in MODELS.items():
        (example,) = components[model]["examples"]
        assert httpx.post(service.address + path, json=example).status_code == 200
    assert set(document["paths"]["/predict"]["post"]["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
    }


def test_all_that_is_referred_to_is_there(service):
    text = httpx.get(f"{service.address}/openapi.json").text
    document = httpx.get(f"{service.address}/openapi.json").json()
    for name in text.split('"#/components/schemas/')[1:]:
        assert name.partition('"')[0] in document["components"]["schemas"]
