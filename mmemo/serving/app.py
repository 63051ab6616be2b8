"""
The application: its paths and its error responses.

Deliberate choices:
- A request is rejected as early as possible: by its key, its size, the load, the header of its audio or video, and
  then its samples.
- Every error response is JSON with one sentence in `detail`.
- The handlers read the body themselves, because `/predict` accepts both forms and JSON.
"""

import asyncio
import importlib.metadata
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime
from fastapi import FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from mmemo.serving import streams
from mmemo.serving.forms import receive_form
from mmemo.serving.limits import LimitBodies, TooLargeError, short_detail
from mmemo.serving.memory import keep_small
from mmemo.serving.observing import Metrics, Observe
from mmemo.serving.openapi import DESCRIPTION, ERRORS, PATHS, openapi_document
from mmemo.serving.reading import read_batch, read_form, read_item
from mmemo.serving.schemas import ErrorResponse, PredictBatchResponse, PredictResponse, VersionResponse
from mmemo.serving.service import Service, warm_up
from mmemo.serving.settings import ServiceSettings
from mmemo.video.video_files import VideoLimitError


logger = logging.getLogger("mmemo.serving")
Body = TypeVar("Body")
JSON, FORM = "application/json", "multipart/form-data"
SMALL_BODY_BYTES = 2048
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
INTERNAL_ERROR = "Internal error; see the log of the service."


def create_app(
    settings: ServiceSettings | None = None, metrics: Metrics | None = None, id_header: str | None = None
) -> FastAPI:
    """
    Creates the application and loads its model.

    Args:
        settings ([`ServiceSettings`], *optional*): The settings of the service.
        metrics ([`Metrics`], *optional*): See [`Service`].
        id_header (`str`, *optional*): See [`Observe`].

    Raises:
        FileNotFoundError, ImportError, ValueError: If the model cannot be loaded; see [`EmotionPredictor`].
    """
    settings = settings or ServiceSettings()
    service = Service(settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Otherwise the first request would be slow.
        await asyncio.to_thread(warm_up, service.predictor)
        memory = asyncio.create_task(keep_small(service.is_idle))
        app.state.is_ready = True
        yield
        app.state.is_ready = False
        memory.cancel()
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
    app.add_middleware(LimitBodies, settings=settings, pending=service.pending, rejected=service.rejected)
    app.add_middleware(Observe, metrics=service.metrics, paths=PATHS, id_header=id_header)
    _add_error_handlers(app, service)
    _add_predict_paths(app, service)
    _add_status_paths(app, service)
    app.openapi = partial(openapi_document, app, bool(settings.api_keys))  # type: ignore[method-assign]
    return app


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    def reject(reason: str, status: int) -> Callable[[Request, Any], Awaitable[Response]]:
        async def handler(request: Request, error: Exception) -> Response:
            service.rejected(reason)
            return JSONResponse({"detail": short_detail(error)}, status)

        return handler

    async def http_error(request: Request, error: Any) -> Response:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    async def internal_error(request: Request, error: Exception) -> Response:
        logger.error("error", exc_info=error)
        # The body of the request may still be arriving.
        return JSONResponse({"detail": INTERNAL_ERROR}, 500, {"Connection": "close"})

    async def disconnected(request: Request, error: Any) -> Response:
        return Response(status_code=499)

    for error in (TooLargeError, VideoLimitError):
        app.add_exception_handler(error, reject("too large", 413))
    app.add_exception_handler(ValueError, reject("refused", 422))
    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, disconnected)
    app.add_exception_handler(Exception, internal_error)


def _add_predict_paths(app: FastAPI, service: Service) -> None:
    settings = service.settings
    documented: dict[str, Any] = {"responses": ERRORS, "response_model_exclude_none": True}

    def check_key(request: Request) -> None:
        if not service.check_key(request.headers):
            raise HTTPException(
                401,
                "The API key is missing or wrong; send it as 'Authorization: Bearer KEY'.",
                {"WWW-Authenticate": "Bearer"},
            )

    async def predict_one(item: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        (prediction,) = await service.predict([item], options)
        if isinstance(prediction, Exception):
            raise prediction
        return prediction

    @app.post("/predict", response_model=PredictResponse, summary="Predict one item", **documented)
    async def predict(request: Request) -> dict[str, Any]:
        """Predicts the emotions in audio, text, video, or several; over time if `return_timeline` is set."""
        check_key(request)
        if _content_type(request, JSON, FORM) == JSON:
            return await predict_one(*await _read(read_item, await request.body(), settings))
        fields, files = await receive_form(request, max_part_bytes=4 * settings.max_text_chars)
        return await predict_one(*await asyncio.to_thread(read_form, fields, files, settings))

    @app.post("/predict/batch", response_model=PredictBatchResponse, summary="Predict several items", **documented)
    async def predict_batch(request: Request) -> dict[str, Any]:
        """Predicts each item. An item that fails has a `detail` instead of a prediction; the others are unaffected."""
        check_key(request)
        _content_type(request, JSON)
        items, options = await _read(read_batch, await request.body(), settings)
        predictions = await service.predict(items, options)
        return {"answers": [_or_detail(prediction) for prediction in predictions]}

    @app.websocket("/stream")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await streams.serve_stream(socket, service)
        except Exception as error:
            logger.error("error", exc_info=error)
            await streams.end(socket, {"type": "error", "detail": INTERNAL_ERROR}, streams.INTERNAL_ERROR)


async def _read(read: Callable[..., Body], body: bytes, settings: ServiceSettings) -> Body:
    """Reads a body in a thread, unless it is so small that the event loop takes no longer than handing it over."""
    return read(body, settings) if len(body) <= SMALL_BODY_BYTES else await asyncio.to_thread(read, body, settings)


def _content_type(request: Request, *accepted: str) -> str:
    """
    Returns the type of the body.

    Raises:
        HTTPException: If it is not accepted, or its text is not UTF-8.
    """
    header, parameters = parse_options_header(request.headers.get("content-type"))
    kind, charset = header.decode("latin-1").lower(), parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if kind not in accepted:
        raise HTTPException(415, f"The Content-Type is {kind[:100] or 'missing'}; send {' or '.join(accepted)}.")
    if charset not in CHARSETS:
        raise HTTPException(415, f"The charset of the Content-Type is {charset[:100]}; send UTF-8.")
    return kind


def _or_detail(prediction: dict[str, Any] | Exception) -> dict[str, Any]:
    if isinstance(prediction, ValueError):
        return {"detail": short_detail(prediction)}
    if isinstance(prediction, Exception):
        logger.error("error", exc_info=prediction)
        return {"detail": INTERNAL_ERROR}
    return prediction


def _add_status_paths(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Liveness probe")
    async def health() -> dict[str, str]:
        """Returns 200 while the process runs."""
        return {"status": "ok"}

    @app.get(
        "/ready",
        responses={503: {"model": ErrorResponse, "description": "Starting or stopping."}},
        summary="Readiness probe",
    )
    async def ready() -> dict[str, str]:
        """Returns 200 once the model is loaded, and 503 before and while the service stops."""
        if not app.state.is_ready:
            raise HTTPException(503, "The service is starting or stopping.")
        return {"status": "ready"}

    @app.get("/version", summary="Versions and model")
    async def version() -> VersionResponse:
        """Returns the versions of the software, and the model with its labels."""
        return VersionResponse(
            mmemo=app.version,
            onnxruntime=onnxruntime.__version__,
            model=Path(service.settings.model).name if service.settings.model else "embedded",
            precision=service.predictor.graph.metadata["precision"],
            labels=service.predictor.answers.labels,
            modalities=list(service.predictor.answers.modalities),
        )

    @app.get("/metrics", response_class=Response, summary="Prometheus metrics")
    async def metrics() -> Response:
        """Returns the metrics of this process in the format of Prometheus."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
