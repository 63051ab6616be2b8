"""
The application: its paths, and how it says that something is refused.

Deliberate choices:
- A request is refused as early as it can be: by its key, its size, its number, its header, and only then by its sound.
- Whatever a client sends is answered with a sentence, in `detail`.
- Bodies are read by the handlers and not by FastAPI, so that one path takes forms and JSON.
"""

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from mmemo.serving import streams
from mmemo.serving.limits import LimitBodies, TooLargeError
from mmemo.serving.observing import Observe
from mmemo.serving.openapi import DESCRIPTION, PATHS, REFUSALS, describe
from mmemo.serving.reading import as_item, as_options, check_words, read_form, validate
from mmemo.serving.schemas import Answer, BatchAnswer, BatchRequest, Failure, PredictRequest, Version
from mmemo.serving.service import Service, warm_up
from mmemo.serving.settings import ServiceSettings


logger = logging.getLogger("mmemo.serving")


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """
    The application of a service.

    Args:
        settings ([`ServiceSettings`], *optional*): Its settings.

    Raises:
        FileNotFoundError, ImportError, ValueError: If there is no model to run; see [`EmotionPredictor`].
    """
    settings = settings or ServiceSettings()
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What the first request would otherwise wait for.
        await asyncio.to_thread(warm_up, service.predictor)
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="mmemo",
        version=importlib.metadata.version("mmemo"),
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.is_ready = False
    app.state.service = service
    app.add_middleware(LimitBodies, settings=settings, pending=service.pending, refused=service.refused)
    app.add_middleware(Observe, metrics=service.metrics, paths=PATHS)
    _add_refusals(app, service)
    _add_predictions(app, service)
    _add_states(app, service)
    app.openapi = partial(describe, app, bool(settings.api_keys))  # type: ignore[method-assign]
    return app


def _add_refusals(app: FastAPI, service: Service) -> None:
    """Says errors in one sentence, always in the same form."""

    def refuse(reason: str, status: int) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handler(request: Request, error: Exception) -> Response:
            service.refused(reason)
            return JSONResponse({"detail": str(error)}, status)

        return handler

    async def as_they_are(request: Request, error: Any) -> Response:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    async def unforeseen(request: Request, error: Exception) -> Response:
        logger.error("error", exc_info=error)
        return JSONResponse({"detail": "Something went wrong here; the service's log says what."}, 500)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(TooLargeError, refuse("too large", 413))
    app.add_exception_handler(ValueError, refuse("refused", 422))
    app.add_exception_handler(StarletteHTTPException, as_they_are)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unforeseen)


def _add_predictions(app: FastAPI, service: Service) -> None:
    settings = service.settings
    described: dict[str, Any] = {"responses": REFUSALS, "response_model_exclude_none": True}

    def check_key(request: Request) -> None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if not service.check_key(key.strip() if scheme.lower() == "bearer" else ""):
            service.refused("key")
            raise HTTPException(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def answer(item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        (one,) = await service.answer([item], options)
        if isinstance(one, ValueError):
            raise one
        return one

    @app.post("/predict", response_model=Answer, summary="One item", **described)
    async def predict(request: Request) -> dict[str, Any]:
        """The emotions in a voice, its words, or both; over time if `return_timeline` is set."""
        check_key(request)
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            given = validate(PredictRequest, await request.body())
            check_words(given, settings.max_text_chars)
            return await answer(as_item(given), as_options(given))
        if kind != "multipart/form-data":
            raise HTTPException(415, f"{kind or 'Nothing'} is no form; send multipart/form-data or application/json.")
        async with request.form(max_files=2, max_fields=32, max_part_size=4 * settings.max_text_chars) as form:
            fields, audio = await read_form(form)
            check_words(fields, settings.max_text_chars)
            return await answer(as_item(fields, audio), as_options(fields))

    @app.post("/predict/batch", response_model=BatchAnswer, summary="Several items", **described)
    async def predict_batch(request: Request) -> dict[str, Any]:
        """An answer for each item; where one is refused, the others are answered, and it has a `detail` instead."""
        check_key(request)
        given = validate(BatchRequest, await request.body())
        if len(given.items) > settings.max_items:
            raise TooLargeError(
                f"The batch has {len(given.items)} items; this service takes at most {settings.max_items}."
            )
        for item in given.items:
            check_words(item, settings.max_text_chars)

        answers = await service.answer(list(map(as_item, given.items)), as_options(given))
        return {"answers": [{"detail": str(one)} if isinstance(one, ValueError) else one for one in answers]}

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await streams.follow(socket, service)
        except Exception as error:
            logger.error("error", exc_info=error)
            detail = "Something went wrong here; the service's log says what."
            await streams.end(socket, {"type": "error", "detail": detail}, streams.INTERNAL_ERROR)


def _add_states(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether it lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", responses={503: {"model": Failure}}, summary="Whether it answers")
    async def ready() -> dict[str, str]:
        if not app.state.is_ready:
            raise HTTPException(503, "The service is starting or stopping.")
        return {"status": "ready"}

    @app.get("/version", summary="What runs")
    async def version() -> Version:
        return Version(
            mmemo=app.version,
            onnxruntime=importlib.metadata.version("onnxruntime"),
            model=Path(service.settings.model).name if service.settings.model else "embedded",
            precision=service.predictor.graph.metadata["precision"],
            labels=service.predictor.answers.labels,
        )

    @app.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
