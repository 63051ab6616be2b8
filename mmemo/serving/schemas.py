"""What the service takes and gives, as its OpenAPI says it."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from mmemo.words.times import is_subtitles


def _decode(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64 ({error}); encode the bytes of an audio file") from error


def _only_content(value: Any) -> Any:
    # A path would be read here, on the service's own machine.
    if isinstance(value, str) and value.strip("\ufeff \t\r\n") and not is_subtitles(value):
        raise ValueError("holds no subtitles; send the content of an SRT or WebVTT file")
    return value


Base64Audio = Annotated[bytes, BeforeValidator(_decode), Field(json_schema_extra={"contentEncoding": "base64"})]
Subtitles = Annotated[str, BeforeValidator(_only_content)]
TimedWord = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1)], float, float],
    Field(description="A word, and when it starts and ends, in seconds."),
]


class Turn(BaseModel):
    """A stretch in which a speaker speaks."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    speaker: str
    start: float = Field(ge=0, description="In seconds.")
    end: float = Field(ge=0, description="In seconds.")


class DialogueTurn(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(extra="forbid")

    text: str
    speaker: str | None = None


class Options(BaseModel):
    """What an answer is to be like; see the pipeline of mmemo."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    top_k: int | None = Field(None, ge=1, description="How many labels, best first; all by default.")
    threshold: float | None = Field(None, gt=0, lt=1, description="The score below which the label is `uncertain`.")
    coverage: float | None = Field(
        None, gt=0, lt=1, description="Adds the set of labels that holds the true one so often."
    )
    channel: int | None = Field(None, ge=0, description="The channel to hear; their mean by default.")
    return_timeline: bool = Field(False, description="An answer for every half second of a recording.")
    granularity: Literal["segment", "word", "sentence", "utterance"] | None = Field(
        None, description="What has an entry of the timeline; half a second by default."
    )
    segment_s: float | None = Field(None, ge=0.1, le=30, description="Length of an entry, in seconds.")
    channels: Literal["split"] | None = Field(None, description="Hears each channel apart.")
    speaker_turns: list[Turn] | None = Field(None, description="Who speaks when; each turn is heard apart.")
    customer: int | str | None = Field(None, description="The channel or speaker whose emotions are asked for.")
    everyone: bool | None = Field(None, description="Whether everyone's emotions are asked for.")


class Item(BaseModel):
    """A voice, its words, or both."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    audio: Base64Audio | None = Field(None, description="The bytes of an audio file, in base64.")
    text: str | None = Field(None, description="What is said.")
    subtitles: Subtitles | None = Field(None, description="What is said when, as SRT or WebVTT.")
    word_times: list[TimedWord] | None = Field(None, description="What is said when, word by word.")
    context: list[DialogueTurn] | None = Field(
        None, description="What was said before the text, oldest first; for models that read dialogues."
    )
    speaker: str | None = Field(None, description="Who says the text, as in the context.")


class PredictRequest(Item, Options):
    """An item, and what its answer is to be like."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"text": "I have been waiting for an hour.", "top_k": 2}]},
    )


class BatchRequest(Options):
    """Items, and what their answers are to be like."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={
            "examples": [{"items": [{"text": "I have been waiting for an hour."}, {"text": "Thank you!"}], "top_k": 1}]
        },
    )

    items: list[Item] = Field(min_length=1)


class PredictForm(Options):
    """The fields of a form, but for its files."""

    text: str | None = None
    subtitles: Subtitles | None = None
    context: list[DialogueTurn] | None = None
    speaker: str | None = None
    customer: int | str | None = Field(None, union_mode="left_to_right")


class Score(BaseModel):
    label: str
    score: float


class ModalityWeights(BaseModel):
    """How much audio and text had to say."""

    audio: float
    text: float


class Segment(BaseModel):
    """An entry of a timeline."""

    start: float
    end: float
    words: list[str]
    label: str
    scores: list[Score]
    modality_weights: ModalityWeights
    label_set: list[str] | None = None


class Span(BaseModel):
    """A stretch of one label."""

    start: float
    end: float
    label: str
    score: float


class Found(BaseModel):
    """What was found: of a whole, a speaker, or a turn."""

    label: str | None = None
    scores: list[Score] | None = None
    modality_weights: ModalityWeights | None = None
    label_set: list[str] | None = None
    speech: list[tuple[float, float]] | None = None
    timeline: list[Segment] | None = None
    spans: list[Span] | None = None


class TurnFound(Found):
    """What was found in a turn."""

    speaker: str
    start: float
    end: float
    words: list[str] | None = None


class Answer(Found):
    """
    The answer for an item: its `label`, the highest of its `scores`, and with a timeline what the pipeline returns. Of
    channels or turns, it is in `speakers` and `turns`.
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

    duration: float | None = None
    speakers: dict[str, Found] | None = None
    turns: list[TurnFound] | None = None


class Failure(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"detail": "The audio is silent. Leave it out."}]})

    detail: str


class BatchAnswer(BaseModel):
    """An answer for each item, in their order, or why there is none."""

    answers: list[Answer | Failure]


class Version(BaseModel):
    """What runs."""

    mmemo: str
    onnxruntime: str
    model: str
    precision: str
    labels: list[str]


class StreamStart(BaseModel):
    """The first message of a live stream."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    encoding: Literal["pcm_s16le", "pcm_f32le", "mulaw", "opus"] = "pcm_s16le"
    sampling_rate: int = Field(16_000, ge=4_000, le=192_000)
    channels: int = Field(1, ge=1, le=2)
    top_k: int | None = Field(None, ge=1)
    threshold: float | None = Field(None, gt=0, lt=1)
    coverage: float | None = Field(None, gt=0, lt=1)
    api_key: str | None = None


class StreamWords(BaseModel):
    """Words that were recognised meanwhile."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    type: Literal["words"]
    word_times: list[TimedWord]


class StreamEnd(BaseModel):
    """Nothing follows."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["end"]
