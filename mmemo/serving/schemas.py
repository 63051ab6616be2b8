"""
Request and response bodies of the service, which its OpenAPI document describes.

Deliberate choices:
- Lists of a request fail at their first invalid entry: all errors of a long list would take seconds and gigabytes.
- Limits that are settings of the service are not part of the schemas; see `mmemo/serving/limits.py`.
"""

import binascii
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, WithJsonSchema

from mmemo.timeline.windows import TimelineOptions
from mmemo.words.times import is_subtitles
from mmemo.zero_shot import HYPOTHESIS_TEMPLATE, MAX_LABELS, NONE_LABEL


# From the URL-safe alphabet of base64 to the standard one.
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_DATA_URL, _DATA_URL_MARK, _DATA_URL_HEAD_CHARS = "data:", ";base64,", 1000
MAX_PADDING = 2
MAX_INTEGER = 2**31 - 1


def _decode(value: Any, medium: str) -> Any:
    """Decodes base64 in either alphabet, with or without padding and line breaks, by itself or in a data URL."""
    article = "an audio" if medium == "audio" else f"a {medium}"
    if value is None or isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be a string, the content of {article} file in base64")
    start = 0
    if value[: len(_DATA_URL)].lower() == _DATA_URL:
        mark = value.find(_DATA_URL_MARK, 0, _DATA_URL_HEAD_CHARS)
        if mark < 0:
            raise ValueError(f"is a data URL without base64; send data:{medium}/...;base64,...")
        start = mark + len(_DATA_URL_MARK)
    try:
        encoded = value.encode("ascii")[start:].translate(_STANDARD_ALPHABET, b" \t\r\n")
        bare = encoded.rstrip(b"=")
        if len(encoded) - len(bare) > MAX_PADDING:
            raise ValueError("it has too much padding")
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except ValueError as error:
        reason = "it contains other characters" if isinstance(error, UnicodeError) else str(error)
        raise ValueError(f"not valid base64 ({reason}); encode the content of {article} file") from error


def _check_content(value: Any) -> Any:
    # A path would be opened on the machine of the service.
    if isinstance(value, str) and value.strip("\ufeff \t\r\n") and not is_subtitles(value):
        raise ValueError("not SRT or WebVTT; send the content of a subtitle file, not its path")
    return value


def _check_customer(value: Any) -> Any:
    if value is None or (isinstance(value, int | str) and not isinstance(value, bool)):
        return value
    raise ValueError("must be the number of a channel or the name of a speaker")


def _check_strings(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return value
    raise ValueError("must be a string or a list of strings")


BASE64 = WithJsonSchema({"type": "string", "contentEncoding": "base64"})
Base64Audio = Annotated[bytes, BeforeValidator(partial(_decode, medium="audio")), BASE64]
Base64Video = Annotated[bytes, BeforeValidator(partial(_decode, medium="video")), BASE64]
Subtitles = Annotated[str, BeforeValidator(_check_content)]
Customer = Annotated[
    Any,
    BeforeValidator(_check_customer),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}),
]
Strings = Annotated[
    Any,
    BeforeValidator(_check_strings),
    WithJsonSchema({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}, {"type": "null"}]}),
]
TimedWord = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1)], float, float],
    Field(description="A word, its start and its end, both in seconds."),
]
TimedWords = Annotated[list[TimedWord], Field(fail_fast=True)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class SpeakerTurnRequest(BaseModel):
    """A time span in which one speaker speaks."""

    model_config = STRICT

    speaker: str
    start: float = Field(ge=0, description="In seconds.")
    end: float = Field(ge=0, description="In seconds.")


class ContextTurnRequest(BaseModel):
    """An earlier turn of the dialogue."""

    model_config = STRICT

    text: str
    speaker: str | None = None


SpeakerTurnRequests = Annotated[list[SpeakerTurnRequest], Field(fail_fast=True)]
ContextTurnRequests = Annotated[list[ContextTurnRequest], Field(fail_fast=True)]


class LabelOptions(BaseModel):
    """Labels in one's own words, for models with a shared space of voice and words."""

    candidate_labels: Strings = Field(
        None,
        description=f"Labels in one's own words, in place of the model's own: up to {MAX_LABELS}, as a list or "
        "separated by commas.",
    )
    hypothesis_template: Strings = Field(
        None,
        description=f"Sentence with `{{}}` in place of the label, or several; default `{HYPOTHESIS_TEMPLATE}`",
    )
    none_label: str | None = Field(
        NONE_LABEL,
        description="Label of items to which no candidate label applies; `null` leaves it out. Only of models whose "
        "candidate labels are calibrated.",
    )


class PredictOptions(LabelOptions):
    """Options of a prediction; they are those of the mmemo pipeline."""

    model_config = STRICT

    top_k: int | None = Field(
        None, ge=1, le=MAX_INTEGER, description="Number of labels to return, highest score first; default all."
    )
    threshold: float | None = Field(
        None, gt=0, lt=1, description="If the highest score is below this, the label is `uncertain`."
    )
    coverage: float | None = Field(
        None, gt=0, lt=1, description="Adds `label_set`, a prediction set with this coverage."
    )
    channel: int | None = Field(
        None, ge=0, le=MAX_INTEGER, description="Audio channel to use; default is the mean of all channels."
    )
    face: int | None = Field(
        None,
        ge=0,
        le=MAX_INTEGER,
        description="Face of the video, from 0 in the order of how long its mouth moves, then of size; default 0.",
    )
    return_timeline: bool = Field(False, description="Returns predictions over time.")
    granularity: Literal["segment", "word", "sentence", "utterance"] | None = Field(
        None, description="Unit of the timeline; default `segment`."
    )
    # `TimelineOptions` checks the maximum.
    segment_s: float | None = Field(
        None,
        ge=0.1,
        description="Length of a segment in seconds; default 0.5.",
        json_schema_extra={"maximum": TimelineOptions.window_s},
    )
    channels: Literal["split"] | None = Field(None, description="`split` predicts each audio channel separately.")
    speaker_turns: SpeakerTurnRequests | None = Field(None, description="Speaker turns; each is predicted separately.")
    customer: Customer = Field(None, description="The channel or speaker whose emotions to predict.")
    everyone: bool | None = Field(None, description="Predicts the emotions of all channels or speakers.")


class PredictItem(BaseModel):
    """Audio, text, video, or several of them."""

    model_config = STRICT

    audio: Base64Audio | None = Field(
        None,
        description="Content of an audio file in base64, by itself or as a data URL `data:audio/webm;base64,...`. The "
        "URL-safe alphabet, line breaks and missing padding are accepted.",
    )
    video: Base64Video | None = Field(
        None,
        description="Content of a video or image file in base64, like `audio`, for models with a video encoder. Its "
        "sound is the audio of the item; `audio` replaces it, and `null` as `audio` leaves it out.",
    )
    text: str | None = Field(None, description="The transcript.")
    subtitles: Subtitles | None = Field(None, description="A transcript with timestamps, as SRT or WebVTT.")
    word_times: TimedWords | None = Field(None, description="A transcript with a timestamp for each word.")
    context: ContextTurnRequests | None = Field(
        None, description="Dialogue before the text, oldest turn first; for models trained with dialogues."
    )
    speaker: str | None = Field(None, description="Speaker of the text, as named in `context`.")


class PredictRequest(PredictItem, PredictOptions):
    """An item and its options."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={"examples": [{"text": "I have been waiting for an hour.", "top_k": 2}]}
    )


class PredictBatchRequest(PredictOptions):
    """Several items and the options for all of them."""

    model_config = STRICT | ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"text": "I have been waiting for an hour."}, {"text": "Thank you!"}], "top_k": 1}]
        },
    )

    items: list[PredictItem] = Field(min_length=1, fail_fast=True)


class PredictForm(PredictOptions):
    """An item and its options, as a form."""

    text: str | None = Field(None, description="The transcript.")
    subtitles: Subtitles | None = None
    context: ContextTurnRequests | None = None
    speaker: str | None = Field(None, description="Speaker of the text, as named in `context`.")


class LabelScore(BaseModel):
    """A label and its score."""

    label: str
    score: float


class ModalityWeights(BaseModel):
    """Weight of each modality in a prediction. Their sum is 1; for silence all are 0."""

    audio: float
    text: float
    video: float | None = Field(None, description="Only of models with a video encoder.")


class BlendshapeScore(BaseModel):
    """A blendshape of a face, such as `jawOpen`, and its mean score, 0 to 1."""

    name: str
    score: float


class FaceResponse(BaseModel):
    """The face in a segment: the share of frames in which it was found, and its strongest blendshapes."""

    presence: float
    blendshapes: list[BlendshapeScore]


class SegmentResponse(BaseModel):
    """A segment of a timeline; times are in seconds."""

    start: float
    end: float
    words: list[str]
    label: str
    scores: list[LabelScore]
    modality_weights: ModalityWeights
    label_set: list[str] | None = None
    face: FaceResponse | None = Field(None, description="Only of a video.")


class SpanResponse(BaseModel):
    """Consecutive segments with the same label; times are in seconds."""

    start: float
    end: float
    label: str
    score: float


class SpeakerResponse(BaseModel):
    """The prediction for one channel or speaker. Speakers that were not selected have `speech` only."""

    label: str | None = None
    scores: list[LabelScore] | None = None
    modality_weights: ModalityWeights | None = None
    label_set: list[str] | None = None
    speech: list[tuple[float, float]] | None = Field(None, description="Start and end of speech, in seconds.")
    timeline: list[SegmentResponse] | None = None
    spans: list[SpanResponse] | None = None


class TurnResponse(SpeakerResponse):
    """The prediction for one speaker turn; times are in seconds."""

    speaker: str
    start: float
    end: float
    words: list[str] | None = None


class PredictResponse(SpeakerResponse):
    """
    The prediction for an item. Its `label` is the one with the highest score, or `uncertain`. With `return_timeline`
    it has the `timeline` and its `spans`; with `channels` or `speaker_turns`, `speakers` and `turns`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "label": "angry",
                    "scores": [{"label": "angry", "score": 0.55}, {"label": "surprise", "score": 0.38}],
                    "modality_weights": {"audio": 0.61, "text": 0.39},
                }
            ]
        }
    )

    duration: float | None = Field(None, description="Duration of the recording in seconds.")
    speakers: dict[str, SpeakerResponse] | None = None
    turns: list[TurnResponse] | None = None


class ErrorResponse(BaseModel):
    """Why a request or an item failed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "The audio is silent. Leave it out."}]})

    detail: str


class PredictBatchResponse(BaseModel):
    """The prediction or the error for each item, in the order of the request."""

    answers: list[PredictResponse | ErrorResponse]


class VersionResponse(BaseModel):
    """Versions of the software, and the model being served."""

    mmemo: str
    onnxruntime: str
    model: str
    precision: str
    labels: list[str]
    modalities: list[str]


class StreamStart(LabelOptions):
    """The first message of a live stream."""

    model_config = STRICT

    encoding: Literal["pcm_s16le", "pcm_f32le", "mulaw", "opus"] = "pcm_s16le"
    sampling_rate: int = Field(16_000, ge=4_000, le=192_000)
    channels: int = Field(1, ge=1, le=2)
    top_k: int | None = Field(None, ge=1, le=MAX_INTEGER)
    threshold: float | None = Field(None, gt=0, lt=1)
    coverage: float | None = Field(None, gt=0, lt=1)
    api_key: str | None = None


class StreamWords(BaseModel):
    """Words recognised since the last message."""

    model_config = STRICT

    type: Literal["words"]
    word_times: TimedWords


class StreamEnd(BaseModel):
    """The last message of a live stream."""

    model_config = STRICT

    type: Literal["end"]
