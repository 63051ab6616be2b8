"""
Settings of the service: flags of `mmemo serve`, arguments of the application on Ray Serve, or environment variables.

Deliberate choices:
- Variables are named `MMEMO_SERVE__PORT`. For every Service Kubernetes sets variables such as `{NAME}_PORT=tcp://...`
  and `{NAME}_SERVICE_HOST`, with the name in capitals and underscores for dashes. A name cannot end with a dash, so no
  Service can set one of ours; `MMEMO_PORT`, as it was called before, is set by a Service called `mmemo`.
- Unknown variables cause a warning, not an error, because others may set them; except for those that seem to contain
  API keys: without its keys, the service would accept all requests.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from mmemo.runtime.cores import available_cores


MIB = 2**20
PREFIX, RAY_PREFIX = "MMEMO_SERVE__", "MMEMO_RAY__"
OLD_PREFIX = "MMEMO_"
# Parts of names that stand for a secret, and the similarity, 0 to 1, from which a name is a misspelt one. Variables of
# Kubernetes for a Service called mmemo-serve-api-keys have a similarity of 0.9.
SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "AUTH", "PASSWORD")
MISSPELT = 0.92


@dataclass(frozen=True)
class ServiceSettings:
    """
    Settings of the service.

    Args:
        model (`str`, *optional*), revision (`str`, *optional*): See [`EmotionPredictor`].
        host (`str`, *optional*, defaults to `"127.0.0.1"`), port (`int`, *optional*, defaults to 8000):
            Address to listen on.
        api_keys (`tuple[str, ...]`, *optional*):
            Valid API keys; requests need one of them. By default no key is needed.
        workers (`int`, *optional*):
            Number of inferences that run at the same time, on one core each; defaults to the number of cores.
        max_batch_size (`int`, *optional*):
            Maximum number of waiting items that run as one batch. Defaults to 1 for a dynamic int8 graph, which
            measures its activations over the batch, so that other items would change a score; and to 8 otherwise.
        max_waiting (`int`, *optional*, defaults to 64): Requests in progress or waiting; more are rejected with 503.
        max_recordings (`int`, *optional*, defaults to 2): Timelines in progress; more are rejected with 503.
        max_videos (`int`, *optional*, defaults to 8):
            Requests with videos in progress or waiting, apart from timelines; more are rejected with 503.
        max_streams (`int`, *optional*, defaults to 16): Open live streams; more are rejected.
        timeout_s (`float`, *optional*, defaults to 300): Maximum time from the end of a request to its response.
        upload_timeout_s (`float`, *optional*, defaults to 60): Maximum time for the body of a request to arrive.
        header_timeout_s (`float`, *optional*, defaults to 10): Maximum time for the headers of a request to arrive.
        keep_alive_s (`float`, *optional*, defaults to 5): Time after which a connection without a request is closed.
        max_connections (`int`, *optional*, defaults to 512):
            Maximum number of open connections; fewer if the limit on open files permits fewer. Beyond it the
            connection that has waited longest for its client is closed, and with only complete requests in progress
            the new one is rejected with 503.
        shutdown_s (`float`, *optional*, defaults to 30): Time to complete requests in flight when the service stops.
        max_request_mib (`float`, *optional*, defaults to 25): Maximum size of a request.
        max_pending_mib (`float`, *optional*, defaults to 40):
            Maximum size of all requests in flight; more are rejected with 503.
        max_clip_s (`float`, *optional*, defaults to 600): Maximum duration of audio without a timeline.
        max_recording_s (`float`, *optional*, defaults to 14400):
            Maximum duration of audio with a timeline, and of a live stream.
        max_video_s (`float`, *optional*, defaults to 600): Maximum duration of a video, with or without a timeline.
        max_pixels (`int`, *optional*, defaults to 9437184):
            Maximum size of a frame of a video, width times height; 4K has 8294400 pixels.
        max_channels (`int`, *optional*, defaults to 8), max_sampling_rate (`int`, *optional*, defaults to 192000):
            Maximum number of audio channels, and maximum sampling rate in Hz.
        max_text_chars (`int`, *optional*, defaults to 200000): Maximum length of a text or of subtitles.
        max_name_chars (`int`, *optional*, defaults to 256): Maximum length of the name of a speaker.
        max_words (`int`, *optional*, defaults to 50000): Maximum number of words with timestamps of an item.
        max_turns (`int`, *optional*, defaults to 5000): Maximum number of speaker turns.
        max_voices (`int`, *optional*, defaults to 16): Maximum number of speaker turns at the same time.
        max_context_turns (`int`, *optional*, defaults to 1000): Maximum number of turns of context of an item.
        max_items (`int`, *optional*, defaults to 32): Maximum number of items in a batch request.
        max_json_values (`int`, *optional*, defaults to 500000):
            Maximum number of values in JSON: objects, arrays and what they contain. A word with its timestamps takes
            four.
        idle_s (`float`, *optional*, defaults to 60): Maximum time between two messages of a live stream.

    Raises:
        ValueError: If a number is not positive, if two settings contradict each other, or if an API key is blank.
    """

    model: str | None = None
    revision: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    workers: int = field(default_factory=available_cores)
    max_batch_size: int | None = None
    max_waiting: int = 64
    max_recordings: int = 2
    max_videos: int = 8
    max_streams: int = 16
    timeout_s: float = 300.0
    upload_timeout_s: float = 60.0
    header_timeout_s: float = 10.0
    keep_alive_s: float = 5.0
    max_connections: int = 512
    shutdown_s: float = 30.0
    max_request_mib: float = 25.0
    max_pending_mib: float = 40.0
    max_clip_s: float = 600.0
    max_recording_s: float = 4 * 3600.0
    max_video_s: float = 600.0
    max_pixels: int = 4096 * 2304
    max_channels: int = 8
    max_sampling_rate: int = 192_000
    max_text_chars: int = 200_000
    max_name_chars: int = 256
    max_words: int = 50_000
    max_turns: int = 5_000
    max_voices: int = 16
    max_context_turns: int = 1_000
    max_items: int = 32
    max_json_values: int = 500_000
    idle_s: float = 60.0

    def __post_init__(self):
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"{setting.name}={value!r} must be positive.")
        if self.max_pending_mib < self.max_request_mib:
            raise ValueError(
                f"max_pending_mib={self.max_pending_mib:g} is less than max_request_mib={self.max_request_mib:g}: "
                "the service would reject the largest requests. Raise the former or lower the latter."
            )
        if any(not key.strip() for key in self.api_keys):
            raise ValueError("An API key is blank; remove it. Without any key, requests need none.")

    @classmethod
    def from_environment(cls, **given: Any) -> "ServiceSettings":
        """
        Reads the settings from environment variables such as `MMEMO_SERVE__PORT`. An empty variable counts as unset;
        `MMEMO_SERVE__API_KEYS` is a list separated by commas.

        Args:
            given: Settings that override the environment.

        Raises:
            ValueError: If a value is invalid, if API keys are set under the former name of the variable only, or if
                the name of a variable seems to be a misspelt `MMEMO_SERVE__API_KEYS`: the service would run without
                keys.
        """
        known = _variables(PREFIX)
        values = _values(ServiceSettings, os.environ, PREFIX)
        for name in filter(_seems_to_be_keys, sorted(os.environ.keys() - known.keys())):
            raise ValueError(
                f"{name} is not a setting. API keys are set with {PREFIX}API_KEYS, separated by commas; rename the "
                "variable, or the service needs no key."
            )
        old_keys = f"{OLD_PREFIX}API_KEYS"
        if os.environ.get(old_keys) and "api_keys" not in values | given:
            raise ValueError(f"{old_keys} is now called {PREFIX}API_KEYS; rename it, or the service needs no key.")
        return cls(**(values | given))

    def describe(self) -> str:
        """Returns all settings as lines `VARIABLE=value`; instead of the API keys, their number."""
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        values["api_keys"] = f"({len(self.api_keys)} keys)" if self.api_keys else None
        return "\n".join(f"{PREFIX}{name.upper()}={'' if value is None else value}" for name, value in values.items())

    @property
    def max_request_bytes(self) -> int:
        return round(self.max_request_mib * MIB)

    @property
    def max_pending_bytes(self) -> int:
        return round(self.max_pending_mib * MIB)


# Settings of the HTTP server; on Ray Serve its proxies listen instead. The container sets the address.
ADDRESS_SETTINGS, CONNECTION_SETTINGS = ("host", "port"), ("header_timeout_s", "keep_alive_s", "max_connections")
SERVER_SETTINGS = ADDRESS_SETTINGS + CONNECTION_SETTINGS


@dataclass(frozen=True)
class RayServeSettings:
    """
    Settings of the replicas on Ray Serve; each of them is a service with [`ServiceSettings`].

    Args:
        min_replicas (`int`, *optional*, defaults to 1): Minimum number of replicas; 0 stops them without requests.
        max_replicas (`int`, *optional*, defaults to 4): Maximum number of replicas.
        target_ongoing_requests (`float`, *optional*):
            Number of requests and streams per replica, in progress or waiting, to which Ray Serve adapts the number of
            replicas; defaults to two for each worker.

    Raises:
        ValueError: If a number is too small, or `max_replicas` is less than `min_replicas`.
    """

    min_replicas: int = 1
    max_replicas: int = 4
    target_ongoing_requests: float | None = None

    def __post_init__(self):
        if self.min_replicas < 0:
            raise ValueError(f"min_replicas={self.min_replicas} must not be negative.")
        if self.max_replicas < max(1, self.min_replicas):
            raise ValueError(
                f"max_replicas={self.max_replicas} must be at least 1 and at least min_replicas={self.min_replicas}."
            )
        if self.target_ongoing_requests is not None and not self.target_ongoing_requests > 0:
            raise ValueError(f"target_ongoing_requests={self.target_ongoing_requests!r} must be positive.")


def ray_serve_settings(arguments: Mapping[str, Any]) -> tuple[ServiceSettings, RayServeSettings]:
    """
    Reads the settings of the service on Ray Serve from environment variables such as `MMEMO_SERVE__MAX_CLIP_S` and
    `MMEMO_RAY__MAX_REPLICAS`. By default a replica has one worker.

    Args:
        arguments (`Mapping[str, Any]`):
            Arguments of the application, which override the environment: values by the name of the setting, as text
            from the command line or as in YAML. `None` counts as unset.

    Raises:
        ValueError: See [`~ServiceSettings.from_environment`]; or if an argument is not a setting, is one of the HTTP
            server, or has API keys.
    """
    names = {kind: {setting.name for setting in fields(kind)} for kind in (ServiceSettings, RayServeSettings)}
    names[ServiceSettings] -= {"api_keys", *SERVER_SETTINGS}
    if "api_keys" in arguments:
        raise ValueError(f"Ray Serve logs arguments; set API keys in the environment instead: {PREFIX}API_KEYS.")
    if ignored := sorted(arguments.keys() & set(SERVER_SETTINGS)):
        raise ValueError(
            f"{', '.join(ignored)}: Ray Serve's proxy accepts the connections; set its http_options in the "
            "configuration of Serve instead."
        )
    if unknown := sorted(arguments.keys() - set().union(*names.values())):
        valid = ", ".join(sorted(set().union(*names.values())))
        raise ValueError(f"{', '.join(unknown)}: not a setting. Valid are {valid}.")
    given = {name: str(value) for name, value in arguments.items() if value is not None}
    service = {"workers": 1, **_values(ServiceSettings, os.environ, PREFIX), **_values(ServiceSettings, given)}
    ray = {**_values(RayServeSettings, os.environ, RAY_PREFIX), **_values(RayServeSettings, given)}
    return ServiceSettings.from_environment(**service), RayServeSettings(**ray)


def environment_warnings(is_on_ray: bool = False) -> list[str]:
    """
    Returns a sentence for each environment variable that looks like a setting but is ignored.

    Args:
        is_on_ray (`bool`, *optional*, defaults to `False`):
            Whether the service runs on Ray Serve, where limits on connections are ignored too.
    """
    known, old = _variables(PREFIX), _variables(OLD_PREFIX)
    known_to_ray = _variables(RAY_PREFIX, RayServeSettings)
    warnings = []
    for name, value in sorted(os.environ.items()):
        for prefix, settings in ((PREFIX, known), (RAY_PREFIX, known_to_ray)):
            if name.startswith(prefix) and name not in settings:
                warnings.append(f"{name} is ignored: it is not a setting. Valid are {', '.join(sorted(settings))}.")
        if is_on_ray and name in known and known[name].name in CONNECTION_SETTINGS:
            warnings.append(f"{name} is ignored: Ray Serve's proxies accept the connections.")
        # Kubernetes sets MMEMO_PORT=tcp://... for a Service called mmemo.
        if name in old and "://" not in value:
            warnings.append(f"{name} is ignored: the setting is now called {PREFIX}{name.removeprefix(OLD_PREFIX)}.")
    return warnings


def _seems_to_be_keys(name: str) -> bool:
    """Whether the name of a variable that is not a setting seems to be meant as `MMEMO_SERVE__API_KEYS`."""
    upper = name.upper()
    if upper.startswith(PREFIX) and any(word in upper for word in SECRET_WORDS):
        return True
    letters, expected = (text.replace("_", "") for text in (upper, f"{PREFIX}API_KEYS"))
    return difflib.SequenceMatcher(None, letters, expected).ratio() > MISSPELT


def _variables(prefix: str, kind: type = ServiceSettings) -> dict[str, Any]:
    return {f"{prefix}{setting.name.upper()}": setting for setting in fields(kind)}


def _values(kind: type, given: Mapping[str, str], prefix: str | None = None) -> dict[str, Any]:
    """Returns the settings of a kind in environment variables with a prefix, or by their own names without one."""
    known = {setting.name: setting for setting in fields(kind)} if prefix is None else _variables(prefix, kind)
    return {
        known[name].name: _parse(name, value, known[name].type)
        for name, value in given.items()
        if name in known and value
    }


def _parse(name: str, value: str, kind: Any) -> Any:
    if kind == tuple[str, ...]:
        return tuple(key.strip() for key in value.split(","))
    number = next((number for number in (int, float) if kind in (number, number | None)), None)
    if number is None:
        return value
    try:
        return number(value)
    except ValueError as error:
        what = "an integer" if number is int else "a number"
        raise ValueError(f"{name}={value!r} must be {what}.") from error
