"""
Turns the body of a request into items and their options.

Deliberate choices:
- The structure of JSON is checked first, so that a validator never meets a million errors; see `check_json`.
- Large bodies are read in a thread: reading 25 MiB would block the event loop.
- Only the first error is reported.
"""

from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException

from mmemo.serving.json_structure import check_json
from mmemo.serving.limits import check_sizes
from mmemo.serving.schemas import (
    ContextTurnRequests,
    LabelOptions,
    PredictBatchRequest,
    PredictForm,
    PredictItem,
    PredictOptions,
    PredictRequest,
    SpeakerTurnRequests,
)
from mmemo.serving.settings import ServiceSettings
from mmemo.timeline.windows import TimelineOptions


Model = TypeVar("Model", bound=BaseModel)
MEDIA_FILES = ("audio_file", "video_file")
FILES = (*MEDIA_FILES, "subtitles")
# Fields of a form with JSON inside.
JSON_FIELDS: dict[str, TypeAdapter] = {
    "speaker_turns": TypeAdapter(SpeakerTurnRequests),
    "context": TypeAdapter(ContextTurnRequests),
}
# More fields than the largest object has are not all known.
MAX_FIELDS = len(PredictRequest.model_fields)
TIMELINE_OPTIONS = {"granularity", "segment_s", "channels", "speaker_turns", "customer", "everyone"}
# Instead of sentences of pydantic that describe Python objects.
SENTENCES = {
    "too_short": "is empty; send at least one",
    "too_long": "has too many entries",
    "union_tag_not_found": "a message needs a type, 'words' or 'end'",
}


def read_item(body: bytes, settings: ServiceSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Returns the item of a JSON body, and the options.

    Args:
        body (`bytes`): A [`PredictRequest`].
        settings ([`ServiceSettings`]): The limits.

    Raises:
        HTTPException: If the body is not JSON.
        TooLargeError: If it exceeds a limit.
        ValueError: If a field is invalid.
    """
    request = _read_json(PredictRequest, body, settings)
    check_sizes(request, settings)
    return to_item(request), to_options(request)


def read_batch(body: bytes, settings: ServiceSettings) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the items of a JSON body, a [`PredictBatchRequest`], and their options; see [`read_item`]."""
    request = _read_json(PredictBatchRequest, body, settings)
    check_sizes(request, settings)
    return [to_item(item) for item in request.items], to_options(request)


def read_form(
    fields: dict[str, str], files: dict[str, bytes], settings: ServiceSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Returns the item of a form, and the options. An empty field counts as missing.

    Args:
        fields (`dict[str, str]`): The text fields.
        files (`dict[str, bytes]`): The contents of the files.
        settings ([`ServiceSettings`]): The limits.

    Raises:
        TooLargeError: If the form exceeds a limit.
        ValueError: If a field or a file is unknown or invalid.
    """
    if unknown := files.keys() - set(FILES):
        raise ValueError(f"{', '.join(sorted(unknown))}: unknown file; the form accepts {', '.join(FILES)}.")
    for name in MEDIA_FILES:
        if name in fields:
            raise ValueError(f"{name}: is a text field; send it as a file.")
    values: dict[str, Any] = {name: value for name, value in fields.items() if value}
    if files.get("subtitles"):
        try:
            values["subtitles"] = files["subtitles"].decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("subtitles: not valid UTF-8; convert the file.") from error
    for name in values.keys() & JSON_FIELDS.keys():
        content = values[name].encode()
        check_json(content, settings.max_json_values, MAX_FIELDS)
        try:
            values[name] = JSON_FIELDS[name].validate_json(content, strict=True)
        except ValidationError as error:
            raise ValueError(first_error(error, name)) from error
    try:
        form = PredictForm.model_validate(values)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error
    check_sizes(form, settings)
    return to_item(form, files.get("audio_file"), files.get("video_file")), to_options(form)


def _read_json(model: type[Model], body: bytes, settings: ServiceSettings) -> Model:
    """Validates JSON, without conversions such as `true` to 1."""
    check_json(body, settings.max_json_values, MAX_FIELDS)
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        detail = first_error(error)
        raise HTTPException(400, detail) if _is_not_json(error) else ValueError(detail) from error


def _is_not_json(error: ValidationError) -> bool:
    return error.errors(include_url=False, include_input=False, include_context=False)[0]["type"] == "json_invalid"


def first_error(error: ValidationError, place: str = "", whole: str = "The body") -> str:
    """
    Returns a sentence for the first error of a validation.

    Args:
        error (`ValidationError`): The errors.
        place (`str`, *optional*): The field that was validated; by default all fields.
        whole (`str`, *optional*, defaults to `"The body"`): The name of all fields together.
    """
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    message = SENTENCES.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "json_invalid":
        where = f"{place}:" if place else f"{whole} is"
        return f"{where} not valid JSON: {message.removeprefix('Invalid JSON: ')}."
    field = ".".join([*([place] if place else []), *map(str, first["loc"])])
    return f"{field or whole}: {message}."


def to_item(
    request: PredictItem | PredictForm, audio: bytes | None = None, video: bytes | None = None
) -> dict[str, Any]:
    """
    Returns the item for [`~EmotionPredictor.prepare`].

    Args:
        request ([`PredictItem`] or [`PredictForm`]): The validated body.
        audio, video (`bytes`, *optional*): The files of a form.

    Raises:
        ValueError: If the item has both `subtitles` and `word_times`.
    """
    word_times = None
    if isinstance(request, PredictItem):
        audio, video, word_times = request.audio, request.video, request.word_times
    if request.subtitles is not None and word_times is not None:
        raise ValueError("subtitles and word_times both give timestamps; send one of them.")
    context = None if request.context is None else [turn.model_dump() for turn in request.context]
    item = {
        "audio": audio,
        "video": video,
        "text": request.text,
        "word_times": request.subtitles or word_times,
        "context": context,
        "speaker": request.speaker,
    }
    given = {name: value for name, value in item.items() if value is not None}
    # `"audio": null` next to a video leaves out the sound of the video.
    is_mute = audio is None and "audio" in request.model_fields_set
    return given | ({"audio": None} if video is not None and is_mute else {})


def to_options(request: PredictOptions) -> dict[str, Any]:
    """
    Returns the options that are set, and always `return_timeline`.

    Raises:
        ValueError: If options of a timeline are set without `return_timeline`, or are out of range.
    """
    names = set(PredictOptions.model_fields) - set(LabelOptions.model_fields)
    options = request.model_dump(include=names, exclude_none=True) | to_label_options(request)
    if not options["return_timeline"]:
        if given := sorted(options.keys() & TIMELINE_OPTIONS):
            raise ValueError(f"{', '.join(given)}: only for timelines; set return_timeline.")
        return options
    TimelineOptions(**{name: options[name] for name in ("granularity", "segment_s") if name in options})
    customer = options.get("customer")
    if "speaker_turns" in options:
        options["speaker_turns"] = [(turn["speaker"], turn["start"], turn["end"]) for turn in options["speaker_turns"]]
        if customer is not None:
            options["customer"] = str(customer)
    elif isinstance(request, PredictForm) and customer is not None and customer.isdecimal():
        options["customer"] = int(customer)  # the number of a channel
    return options


def to_label_options(request: LabelOptions) -> dict[str, Any]:
    """Returns the options of candidate labels that are set; `null` is a value of `none_label` only."""
    options = {name: getattr(request, name) for name in LabelOptions.model_fields if name in request.model_fields_set}
    return {name: value for name, value in options.items() if value is not None or name == "none_label"}
