"""The OpenAPI document: FastAPI's, completed with the request bodies that the application reads itself."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from mmemo.serving.schemas import ErrorResponse, PredictBatchRequest, PredictForm, PredictRequest


PATHS = frozenset(
    {"/predict", "/predict/batch", "/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs"}
)
DESCRIPTION = """
Multimodal emotion recognition from audio, text, video, or several of them; `/version` lists the modalities of the
model. The embedded model was trained on acted emotion, which is not felt emotion; do not base decisions about people
on its predictions. Inferring the emotions of people at work or in education is prohibited in the European Union (AI
Act, Art. 5(1)(f)).

Voices are personal data, and faces are biometric data. The service stores neither them nor anything computed from
them: until its response a request is in memory, and above 1 MiB in an unnamed temporary file. Nobody is identified.

`WS /stream` predicts emotions of live audio; OpenAPI cannot describe it: see docs/deploy.md.
"""
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The body is malformed."},
    401: {"model": ErrorResponse, "description": "The API key is missing or wrong."},
    408: {"model": ErrorResponse, "description": "The body took too long to arrive."},
    413: {"model": ErrorResponse, "description": "The request exceeds a limit of the service."},
    415: {"model": ErrorResponse, "description": "The body is neither a form nor JSON."},
    422: {
        "model": ErrorResponse,
        "description": "A field is invalid, a file is unreadable, the audio is silent, or the video has no face and "
        "there is nothing else to predict.",
    },
    503: {
        "model": ErrorResponse,
        "description": "Too many requests, or a timeout; try again later.",
        "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
    },
}


def openapi_document(app: FastAPI, has_keys: bool) -> dict[str, Any]:
    """
    Returns the OpenAPI document of the application, which is built once.

    Args:
        app (`FastAPI`): The application.
        has_keys (`bool`): Whether requests need an API key.
    """
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        models: Any = [(model, "validation") for model in (PredictRequest, PredictForm, PredictBatchRequest)]
        _, definitions = models_json_schema(models, ref_template="#/components/schemas/{model}")
        components = schema["components"]["schemas"]
        components.update(definitions["$defs"])
        components["PredictForm"]["properties"] |= {
            "audio_file": {"type": "string", "format": "binary", "description": "An audio file."},
            "video_file": {
                "type": "string",
                "format": "binary",
                "description": "A video or image file, for models with a video encoder. Its sound is the audio of "
                "the item unless there is an `audio_file`.",
            },
            "subtitles": {"type": "string", "format": "binary", "description": "An SRT or WebVTT file."},
            "speaker_turns": {"type": "string", "description": "Speaker turns, as JSON."},
        }
        paths = schema["paths"]
        paths["/predict"]["post"]["requestBody"] = _body(
            {"multipart/form-data": "PredictForm", "application/json": "PredictRequest"}
        )
        paths["/predict/batch"]["post"]["requestBody"] = _body({"application/json": "PredictBatchRequest"})
        if has_keys:
            schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path in ("/predict", "/predict/batch"):
                paths[path]["post"]["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _body(schemas: dict[str, str]) -> dict[str, Any]:
    content = {kind: {"schema": {"$ref": f"#/components/schemas/{name}"}} for kind, name in schemas.items()}
    return {"required": True, "content": content}
