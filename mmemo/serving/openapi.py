"""What the service says of itself: FastAPI's own, with the bodies that the application reads by itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from mmemo.serving.schemas import BatchRequest, Failure, PredictForm, PredictRequest


PATHS = frozenset(
    {"/predict", "/predict/batch", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs"}
)
DESCRIPTION = """
Which emotions are in a voice, in its words, or in both. Acted emotion is not felt emotion; decide nothing about a
person by this. Inferring the emotions of people at work is prohibited in the European Union (AI Act, Art. 5(1)(f)).

`WS /stream` follows a live voice: see the documentation of mmemo.
"""
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "The request is broken."},
    401: {"model": Failure, "description": "The API key is missing or wrong."},
    408: {"model": Failure, "description": "The request took too long to arrive."},
    413: {"model": Failure, "description": "The request, or the sound in it, is larger than the service takes."},
    415: {"model": Failure, "description": "The request is neither a form nor JSON."},
    422: {"model": Failure, "description": "What is sent cannot be answered for."},
    503: {
        "model": Failure,
        "description": "Too many requests, or no answer in time; try again later.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
    },
}


def describe(app: FastAPI, has_keys: bool) -> dict[str, Any]:
    """The OpenAPI of the application."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models: Any = [(model, "validation") for model in (PredictRequest, PredictForm, BatchRequest)]
        _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
        components = schema["components"]["schemas"]
        components.update(definitions["$defs"])
        components["PredictForm"]["properties"] |= {
            "audio_file": {"type": "string", "format": "binary", "description": "An audio file."},
            "subtitles": {"type": "string", "format": "binary", "description": "An SRT or WebVTT file."},
            "speaker_turns": {"type": "string", "description": "Turns, as JSON."},
        }
        paths = schema["paths"]
        paths["/predict"]["post"]["requestBody"] = _body(
            {"multipart/form-data": "PredictForm", "application/json": "PredictRequest"}
        )
        paths["/predict/batch"]["post"]["requestBody"] = _body({"application/json": "BatchRequest"})
        if has_keys:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in ("/predict", "/predict/batch"):
                paths[path]["post"]["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _body(schemas: dict[str, str]) -> dict[str, Any]:
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in schemas.items()}
    return {"required": True, "content": content}
