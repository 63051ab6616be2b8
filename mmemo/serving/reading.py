"""Turns the body of a request into an item and its options."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from mmemo.serving.limits import TooLargeError
from mmemo.serving.schemas import PredictForm, PredictItem, PredictOptions


Model = TypeVar("Model", bound=BaseModel)
FILES = ("audio_file", "subtitles")
TIMELINE_OPTIONS = {"granularity", "segment_s", "channels", "speaker_turns", "customer", "everyone"}


def validate(model: type[Model], content: bytes | dict[str, Any]) -> Model:
    """
    Validates JSON, without conversions such as `true` to 1, or the fields of a form, which are strings.

    Raises:
        HTTPException: If the content is not JSON.
        ValueError: If it does not match the schema.
    """
    try:
        if isinstance(content, bytes):
            return model.model_validate_json(content, strict=True)
        return model.model_validate(content)
    except ValidationError as error:
        raise _http_error(error) from error


def _http_error(error: ValidationError) -> Exception:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return HTTPException(400, f"The body is not valid JSON: {first['msg']}.")
    field = ".".join(map(str, first["loc"])) or "The body"
    more = f" ({error.error_count() - 1} more errors.)" if error.error_count() > 1 else ""
    return ValueError(f"{field}: {first['msg'].removeprefix('Value error, ')}.{more}")


async def read_form(form: FormData) -> tuple[PredictForm, bytes | None]:
    """
    Reads the fields of a form and the content of its audio file. An empty field counts as missing.

    Raises:
        ValueError: If a field or a file is unknown, duplicate or invalid.
    """
    fields: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise ValueError(f"{name}: duplicate; send it once.")
        if isinstance(value, UploadFile):
            files[name] = value
        elif value:
            fields[name] = value
    if unknown := files.keys() - set(FILES):
        raise ValueError(f"{', '.join(sorted(unknown))}: unknown file; the form accepts {' and '.join(FILES)}.")
    if "audio_file" in fields:
        raise ValueError("audio_file: is a text field; send it as a file.")
    if "subtitles" in files:
        try:
            fields["subtitles"] = (await files["subtitles"].read()).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("subtitles: not valid UTF-8; convert the file.") from error
    for name in fields.keys() & {"speaker_turns", "context"}:
        try:
            fields[name] = json.loads(fields[name])
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{name}: not valid JSON: {error}.") from error
    audio = await files["audio_file"].read() if "audio_file" in files else None
    return validate(PredictForm, fields), audio


def to_item(request: PredictItem | PredictForm, audio: bytes | None = None) -> dict[str, Any]:
    """
    Returns the item for [`~EmotionPredictor.prepare`].

    Args:
        request ([`PredictItem`] or [`PredictForm`]): The validated body.
        audio (`bytes`, *optional*): The audio file of a form.

    Raises:
        ValueError: If the item has both `subtitles` and `word_times`.
    """
    word_times = None
    if isinstance(request, PredictItem):
        audio, word_times = request.audio, request.word_times
    if request.subtitles is not None and word_times is not None:
        raise ValueError("subtitles and word_times both give timestamps; send one of them.")
    context = None if request.context is None else [turn.model_dump() for turn in request.context]
    item = {
        "audio": audio,
        "text": request.text,
        "word_times": request.subtitles or word_times,
        "context": context,
        "speaker": request.speaker,
    }
    return {name: value for name, value in item.items() if value is not None}


def to_options(request: PredictOptions) -> dict[str, Any]:
    """
    Returns the options that are set, and always `return_timeline`.

    Raises:
        ValueError: If options of a timeline are set without `return_timeline`.
    """
    options = request.model_dump(include=set(PredictOptions.model_fields), exclude_none=True)
    if "speaker_turns" in options:
        options["speaker_turns"] = [(turn["speaker"], turn["start"], turn["end"]) for turn in options["speaker_turns"]]
        if "customer" in options:
            options["customer"] = str(options["customer"])
    if not options["return_timeline"] and (given := sorted(options.keys() & TIMELINE_OPTIONS)):
        raise ValueError(f"{', '.join(given)}: only for timelines; set return_timeline.")
    return options


def check_text(item: PredictItem | PredictForm, limit: int) -> None:
    """
    Checks the length of all text of an item.

    Raises:
        TooLargeError: If its text, subtitles, words, context or speaker have more than `limit` characters.
    """
    word_times = item.word_times if isinstance(item, PredictItem) else None
    counts = {
        "text": len(item.text or ""),
        "subtitles": len(item.subtitles or ""),
        "word_times": sum(len(word) for word, *_ in word_times or ()),
        "context": sum(len(turn.text) + len(turn.speaker or "") for turn in item.context or ()),
        "speaker": len(item.speaker or ""),
    }
    for name, count in counts.items():
        if count > limit:
            raise TooLargeError(f"{name} has {count} characters; this service accepts at most {limit}.")
