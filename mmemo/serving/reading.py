"""From the body of a request to an item and its options, or a sentence on what is wrong with it."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from mmemo.serving.limits import TooLargeError
from mmemo.serving.schemas import Item, Options, PredictForm


Model = TypeVar("Model", bound=BaseModel)
FILES = ("audio_file", "subtitles")
TIMELINE_OPTIONS = {"granularity", "segment_s", "channels", "speaker_turns", "customer", "everyone"}


def validate(model: type[Model], content: bytes | dict[str, Any]) -> Model:
    """
    Reads JSON, or the fields of a form.

    Raises:
        HTTPException: If it is no JSON.
        ValueError: If it is not what it must be.
    """
    try:
        return model.model_validate_json(content) if isinstance(content, bytes) else model.model_validate(content)
    except ValidationError as error:
        raise _in_a_sentence(error) from error


def _in_a_sentence(error: ValidationError) -> Exception:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return HTTPException(400, f"The body is no JSON: {first['msg']}.")
    place = ".".join(map(str, first["loc"])) or "The body"
    more = f" ({error.error_count() - 1} more like it.)" if error.error_count() > 1 else ""
    return ValueError(f"{place}: {first['msg'].removeprefix('Value error, ')}.{more}")


async def read_form(form: FormData) -> tuple[PredictForm, bytes | None]:
    """
    The fields of a form, and the bytes of its audio. What is left empty is not there.

    Raises:
        ValueError: If a field or a file is unknown, comes twice, or is not what it must be.
    """
    fields: dict[str, Any] = {}
    files: dict[str, UploadFile] = {}
    for name, value in form.multi_items():
        if name in fields or name in files:
            raise ValueError(f"{name}: comes twice; send it once.")
        if isinstance(value, UploadFile):
            files[name] = value
        elif value:
            fields[name] = value
    if unknown := files.keys() - set(FILES):
        raise ValueError(f"{', '.join(sorted(unknown))}: no such file; the form takes {' and '.join(FILES)}.")
    if "audio_file" in fields:
        raise ValueError("audio_file: is a text; send it as a file.")
    if "subtitles" in files:
        try:
            fields["subtitles"] = (await files["subtitles"].read()).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError("subtitles: are not UTF-8; convert them.") from error
    for name in fields.keys() & {"speaker_turns", "context"}:
        try:
            fields[name] = json.loads(fields[name])
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{name}: is no JSON: {error}.") from error
    audio = await files["audio_file"].read() if "audio_file" in files else None
    return validate(PredictForm, fields), audio


def as_item(given: Item | PredictForm, audio: bytes | None = None) -> dict[str, Any]:
    """What [`EmotionPredictor`] takes for an item; the `audio` of a form comes beside its fields."""
    word_times = None
    if isinstance(given, Item):
        audio, word_times = given.audio, given.word_times
    if given.subtitles is not None and word_times is not None:
        raise ValueError("subtitles and word_times both say when words were spoken; send one of them.")
    context = None if given.context is None else [turn.model_dump() for turn in given.context]
    item = {
        "audio": audio,
        "text": given.text,
        "word_times": given.subtitles or word_times,
        "context": context,
        "speaker": given.speaker,
    }
    return {name: value for name, value in item.items() if value is not None}


def as_options(given: Options) -> dict[str, Any]:
    """What [`EmotionPredictor`] takes for options; with `return_timeline` always."""
    options = given.model_dump(include=set(Options.model_fields), exclude_none=True)
    if "speaker_turns" in options:
        options["speaker_turns"] = [(turn["speaker"], turn["start"], turn["end"]) for turn in options["speaker_turns"]]
        if "customer" in options:
            options["customer"] = str(options["customer"])
    if not options["return_timeline"] and (asked := sorted(options.keys() & TIMELINE_OPTIONS)):
        raise ValueError(f"{', '.join(asked)}: about timelines; set return_timeline.")
    return options


def check_words(item: Item | PredictForm, limit: int) -> None:
    """
    Refuses more words than the service takes.

    Raises:
        TooLargeError: If a text, its subtitles, its words with times or its context have more characters than `limit`.
    """
    word_times = item.word_times if isinstance(item, Item) else None
    counts = {
        "text": len(item.text or ""),
        "subtitles": len(item.subtitles or ""),
        "word_times": sum(len(word) for word, *_ in word_times or ()),
        "context": sum(len(turn.text) + len(turn.speaker or "") for turn in item.context or ()),
        "speaker": len(item.speaker or ""),
    }
    for name, count in counts.items():
        if count > limit:
            raise TooLargeError(f"{name} has {count} characters; this service takes at most {limit}.")
