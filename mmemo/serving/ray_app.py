"""
The service on Ray Serve: the application of `mmemo serve` in replicas on a cluster.

    serve run mmemo.serving.ray_app:app workers=2 max_replicas=8

Deliberate choices:
- `app` builds the application when Serve calls it, so that importing this module needs no environment. Settings are
  read there, once, and travel to the replicas: they agree on every node, API keys included.
- A replica has as many workers as Serve has reserved cores for it: those of the settings, unless the configuration of
  Serve overrides `ray_actor_options`.
- Serve admits as many requests to a replica as the application does itself, so that the limits and the errors of the
  service apply. More wait in Serve's proxies, up to `max_waiting` each.
- Metrics are reported to Ray, which exports those of all replicas. Through the proxies `/metrics` would return those
  of any one replica, so it responds with 404.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, HTTPException

from mmemo.serving.app import create_app
from mmemo.serving.memory import limit_memory_pools
from mmemo.serving.observing import Metrics, configure_logging
from mmemo.serving.settings import ServiceSettings, environment_warnings, ray_serve_settings


try:
    import ray
    from ray import serve
    from ray.serve import metrics as ray_metrics
except ModuleNotFoundError as error:
    raise ImportError("The service on Ray Serve needs ray: pip install 'mmemo[ray]'.") from error


logger = logging.getLogger("mmemo.serving")

# Requests for a status and rejected ones, beyond those that take a slot of the service.
SPARE_REQUESTS = 32
# Requests in progress or waiting for each worker of a replica, from which Serve adds replicas.
ONGOING_PER_WORKER = 2
# Time to end the threads after the last request.
CLOSING_S = 5.0
# Serve's proxies give each request an id, in this header.
ID_HEADER = "x-request-id"


def app(arguments: dict[str, Any]) -> serve.Application:
    """
    Builds the application; for `serve run mmemo.serving.ray_app:app` and the `import_path` of Serve's configuration.

    Args:
        arguments (`dict[str, Any]`): Settings that override environment variables; see [`ray_serve_settings`].

    Raises:
        ValueError: If a setting is invalid or unknown.
    """
    settings, scaling = ray_serve_settings(arguments)
    target = scaling.target_ongoing_requests
    deploy = serve.deployment(
        name="mmemo",
        ray_actor_options={"num_cpus": settings.workers},
        max_ongoing_requests=_max_requests(settings),
        max_queued_requests=settings.max_waiting,
        autoscaling_config={
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": settings.workers * ONGOING_PER_WORKER if target is None else target,
        },
        graceful_shutdown_timeout_s=settings.shutdown_s + CLOSING_S,
    )
    return deploy(EmotionReplica).bind(settings, environment_warnings(is_on_ray=True))


def _max_requests(settings: ServiceSettings) -> int:
    """Returns how many requests a replica has slots for, plus some to reject and for the status paths."""
    slots = settings.max_waiting + settings.max_recordings + settings.max_videos + settings.max_streams
    return slots + SPARE_REQUESTS


@serve.ingress()
class EmotionReplica:
    """
    One replica: the application with a model of its own.

    Args:
        settings ([`ServiceSettings`]): The settings of the service.
        warnings (`list[str]`): Warnings about the environment in which the settings were read; logged.
    """

    def __init__(self, settings: ServiceSettings, warnings: list[str]):
        limit_memory_pools()
        configure_logging()
        self._settings = settings
        self._metrics = RayMetrics()
        for warning in warnings:
            logger.warning(warning)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Loads the model; called by Serve."""
        cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
        settings = replace(self._settings, workers=max(1, math.ceil(cores)))
        self._app = create_app(settings, self._metrics, ID_HEADER)
        return self._app

    def check_health(self) -> None:
        """
        Publishes the gauges; called by Serve every 10 s, which is also the interval at which Ray exports metrics.

        Raises:
            RuntimeError: If the application is not ready; Serve then replaces the replica.
        """
        if not self._app.state.is_ready:
            raise RuntimeError("The service is starting or stopping.")
        self._metrics.publish()


class RayMetrics(Metrics):
    """The metrics of one replica, reported to Ray with the names of the application, deployment and replica."""

    def __init__(self) -> None:
        self._gauges: list[_RayMetric] = []
        super().__init__()

    def histogram(self, name: str, description: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Any:
        tags: Any = tuple(labels)  # annotated as one tag
        return _RayMetric(ray_metrics.Histogram(name, description, list(buckets), tags), labels)

    def counter(self, name: str, description: str, labels: Sequence[str] = ()) -> Any:
        tags: Any = tuple(labels)
        return _RayMetric(ray_metrics.Counter(name, description, tags), labels)

    def gauge(self, name: str, description: str) -> Any:
        self._gauges.append(_RayMetric(ray_metrics.Gauge(name, description), ()))
        return self._gauges[-1]

    def publish(self) -> None:
        """Reports the present values of the gauges."""
        for gauge in self._gauges:
            gauge.publish()

    def exposition(self) -> bytes:
        """
        Raises:
            HTTPException: Always; Ray exports the metrics.
        """
        raise HTTPException(404, "Ray exports the metrics of all replicas; scrape the metrics port of each Ray node.")


class _RayMetric:
    """
    A metric of Ray with the methods of `prometheus_client`.

    Args:
        metric: The metric of Ray.
        names (`Sequence[str]`): Names of its labels.
        tags (`dict[str, str]`, *optional*): Values of its labels.
    """

    def __init__(self, metric: Any, names: Sequence[str], tags: dict[str, str] | None = None):
        self._metric = metric
        self._names = names
        self._tags = tags

    def labels(self, *values: str) -> "_RayMetric":
        return _RayMetric(self._metric, self._names, dict(zip(self._names, values)))

    def observe(self, value: float) -> None:
        self._metric.observe(value, tags=self._tags)

    def inc(self) -> None:
        self._metric.inc(tags=self._tags)

    def set_function(self, function: Callable[[], float]) -> None:
        self._function = function

    def publish(self) -> None:
        self._metric.set(self._function())
