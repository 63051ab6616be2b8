"""What a service may be told, by the flags of `mmemo serve` or by environment variables."""

import os
from dataclasses import dataclass, fields
from typing import Any


MIB = 2**20
PREFIX = "MMEMO_"


@dataclass(frozen=True)
class ServiceSettings:
    """
    Settings of a service.

    Args:
        model (`str`, *optional*), revision (`str`, *optional*): See [`EmotionPredictor`].
        host (`str`), port (`int`): Where it listens.
        api_keys (`tuple[str, ...]`): Any of which a client has to send; none by default, and everybody may ask.
        workers (`int`, *optional*): How many inferences run at once, each on one core; as many as there are cores.
        max_batch_size (`int`, *optional*):
            How many waiting items pass the model together. 1 by default for an int8 graph that measures its
            activations as it runs, where neighbours would move an answer; 8 for any other.
        max_waiting (`int`): Requests that are answered or wait; more are refused with 503.
        max_recordings (`int`): Timelines that are made at once; more are refused with 503.
        max_streams (`int`): Live streams at once; more are refused.
        timeout_s (`float`): How long a request may take, from its last byte to its answer.
        upload_timeout_s (`float`): How long its bytes may take.
        shutdown_s (`float`): How long requests in flight may take once the service is told to stop.
        max_request_mib (`float`): Size of a request.
        max_pending_mib (`float`): Size of all requests in flight; more are refused with 503.
        max_clip_s (`float`): Length of a clip that is answered for as a whole.
        max_recording_s (`float`): Length of a recording with a timeline, and of a live stream.
        max_decoded_mib (`float`): Size of a decoded clip, as float32 of all its channels at its own rate.
        max_channels (`int`), max_sampling_rate (`int`): Of a recording.
        max_text_chars (`int`): Length of a text, or of subtitles.
        max_items (`int`): Items of a batch.
        idle_s (`float`): How long a live stream may say nothing.

    Raises:
        ValueError: If a number is not positive, or two contradict each other.
    """

    model: str | None = None
    revision: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    workers: int = os.cpu_count() or 1
    max_batch_size: int | None = None
    max_waiting: int = 64
    max_recordings: int = 2
    max_streams: int = 16
    timeout_s: float = 300.0
    upload_timeout_s: float = 60.0
    shutdown_s: float = 30.0
    max_request_mib: float = 25.0
    max_pending_mib: float = 40.0
    max_clip_s: float = 30.0
    max_recording_s: float = 4 * 3600.0
    max_decoded_mib: float = 32.0
    max_channels: int = 8
    max_sampling_rate: int = 192_000
    max_text_chars: int = 200_000
    max_items: int = 32
    idle_s: float = 60.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ValueError(f"{field.name}={value!r} must be positive.")
        if self.max_pending_mib < self.max_request_mib:
            raise ValueError(
                f"max_pending_mib={self.max_pending_mib:g} is less than max_request_mib={self.max_request_mib:g}: the "
                "largest request could never be taken. Raise the one or lower the other."
            )
        if any(not key.strip() for key in self.api_keys):
            raise ValueError("An API key is blank; leave it out, and everybody may ask, or choose another.")

    @classmethod
    def from_environment(cls, **given: Any) -> "ServiceSettings":
        """
        The settings that are `given`, and for others those of environment variables such as `MMEMO_PORT`; several keys
        in `MMEMO_API_KEYS` are parted by commas.

        Raises:
            ValueError: If a variable is no setting, or its value is none.
        """
        known = {f"{PREFIX}{field.name.upper()}": field for field in fields(cls)}
        set_there = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        if unknown := sorted(set_there.keys() - known.keys()):
            raise ValueError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(known))}.")
        read = {known[name].name: _read(name, value, known[name].type) for name, value in set_there.items() if value}
        return cls(**(read | given))

    def describe(self) -> str:
        """All settings, as environment variables; of keys, only how many there are."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["api_keys"] = f"({len(self.api_keys)} keys)" if self.api_keys else None
        return "\n".join(f"{PREFIX}{name.upper()}={'' if value is None else value}" for name, value in values.items())

    @property
    def max_request_bytes(self) -> int:
        return round(self.max_request_mib * MIB)

    @property
    def max_pending_bytes(self) -> int:
        return round(self.max_pending_mib * MIB)

    @property
    def max_decoded_bytes(self) -> int:
        return round(self.max_decoded_mib * MIB)


def _read(name: str, value: str, kind: Any) -> Any:
    if kind == tuple[str, ...]:
        return tuple(key.strip() for key in value.split(","))
    number = next((number for number in (int, float) if kind in (number, number | None)), None)
    if number is None:
        return value
    try:
        return number(value)
    except ValueError as error:
        what = "a whole number" if number is int else "a number"
        raise ValueError(f"{name}={value!r} must be {what}.") from error
