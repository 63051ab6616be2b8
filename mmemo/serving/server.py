"""Runs the service until it receives SIGTERM or SIGINT."""

import logging
import signal
import socket
import sys
from contextlib import suppress
from functools import partial

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from mmemo.serving.app import create_app
from mmemo.serving.connections import Connections, LimitedH11Protocol, LimitedWebSocketProtocol
from mmemo.serving.memory import limit_memory_pools
from mmemo.serving.observing import configure_logging
from mmemo.serving.settings import ServiceSettings, environment_warnings
from mmemo.serving.streams import STREAM_MESSAGE_BYTES


logger = logging.getLogger("mmemo.serving")

# Connections that the system accepts before the service does, and connections that the service accepts in one turn of
# the event loop: asyncio uses one number for both. A turn must not use up the files that are left, and at that limit
# asyncio logs an error for each further attempt of the turn.
BACKLOG, ACCEPTED_PER_TURN = 2048, 8
# Files that are not connections: uploads, several turns of accepted connections, and those of the idle process.
RESERVED_FILES = 80


def serve(settings: ServiceSettings) -> None:
    """
    Serves until SIGTERM or SIGINT, then completes the requests in flight within `shutdown_s`.

    Args:
        settings ([`ServiceSettings`]): The settings of the service.

    Raises:
        FileNotFoundError, ImportError, ValueError: If the model cannot be loaded; see [`EmotionPredictor`].
    """
    limit_memory_pools()
    configure_logging()
    for warning in environment_warnings():
        logger.warning(warning)
    # uvicorn raises the signal again after a regular shutdown; the exit status is 0 nevertheless.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    app = create_app(settings)
    connections = Connections(
        connection_limit(settings.max_connections), settings.header_timeout_s, app.state.service.rejected
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        backlog=ACCEPTED_PER_TURN,
        timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # `call_later` takes fractions
        timeout_graceful_shutdown=round(settings.shutdown_s),
        http=partial(LimitedH11Protocol, connections),  # type: ignore[arg-type]  # called like the class
        ws=LimitedWebSocketProtocol,
        # uvicorn rejects a larger message before all of it is there, and stops reading while one waits.
        ws_max_size=STREAM_MESSAGE_BYTES,
        server_header=False,
    )
    server = _Server(config)
    with suppress(KeyboardInterrupt):  # uvicorn raises SIGINT again after a regular shutdown
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)


class _Server(uvicorn.Server):
    """uvicorn's server with a longer queue of the system than asyncio accepts in one turn."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                with socket.fromfd(listener.fileno(), listener.family, listener.type) as copy:
                    copy.listen(BACKLOG)


def connection_limit(wanted: int) -> int:
    """
    Returns the number of connections that the limit on open files permits, at most `wanted`.

    Args:
        wanted (`int`): See `max_connections` of [`ServiceSettings`].

    Raises:
        ValueError: If the limit on open files permits none.
    """
    if sys.platform == "win32":
        return wanted
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files - RESERVED_FILES >= wanted:
        return wanted
    if files <= RESERVED_FILES:
        raise ValueError(
            f"At most {files} files may be open, but at least {RESERVED_FILES + 1} must; raise ulimit -n."
        )
    logger.warning(
        f"At most {files} files may be open, so at most {files - RESERVED_FILES} connections instead of "
        f"max_connections={wanted}; raise ulimit -n."
    )
    return files - RESERVED_FILES
