"""Audio in JSON: base64 as libraries and browsers write it."""

import base64
import json

import pytest
from pydantic import ValidationError

from mmemo.serving.schemas import PredictRequest


# Its base64 has characters of which the alphabets differ, and padding.
DATA = bytes(range(256)) + b"\xfb\xff\xfe"
STANDARD, URL_SAFE = base64.b64encode(DATA + b"\xff").decode(), base64.urlsafe_b64encode(DATA + b"\xff").decode()


def decoded(audio):
    return PredictRequest.model_validate_json(json.dumps({"audio": audio}), strict=True).audio


@pytest.mark.parametrize(
    "audio",
    [
        STANDARD,
        URL_SAFE,
        STANDARD.rstrip("="),
        URL_SAFE.rstrip("="),
        base64.encodebytes(DATA + b"\xff").decode(),
        f"data:audio/webm;base64,{STANDARD}",
        f"data:audio/webm;codecs=opus;base64,{URL_SAFE.rstrip('=')}",
        f"DATA:;base64,{STANDARD}\r\n",
    ],
)
def test_all_forms_of_base64(audio):
    assert "=" in STANDARD and "+" in STANDARD and "/" in STANDARD and "-" in URL_SAFE and "_" in URL_SAFE
    assert decoded(audio) == DATA + b"\xff"


def test_lengths_with_and_without_padding():
    for length in range(8):
        encoded = base64.b64encode(DATA[:length]).decode()
        assert decoded(encoded) == decoded(encoded.rstrip("=")) == DATA[:length]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("!", "not valid base64"),
        ("A", "not valid base64"),
        ("AAAAA", "not valid base64"),
        ("AA==AA==", "not valid base64"),
        ("AAAA===", "too much padding"),
        ("ÄÄÄÄ", "it contains other characters"),
        ("call.wav", "not valid base64"),
        ("data:audio/webm,abc", "is a data URL without base64"),
        ("data:audio/webm;base64,!", "not valid base64"),
        ("data:audio/webm;base64,data:audio/webm;base64,AAAA", "not valid base64"),
        (1, "must be a string, the content of an audio file in base64"),
        ([65], "must be a string"),
        (True, "must be a string"),
    ],
)
def test_what_is_not_base64(audio, message):
    with pytest.raises(ValidationError, match=message):
        decoded(audio)
