"""
Text files in the encodings that subtitle, JSON and RTTM files have.

Deliberate choices:
- Order of attempts: the byte order mark; UTF-16 if there are zero bytes; UTF-8; then the groups of `LEGACY_ENCODINGS`,
  within which charset-normalizer chooses by the plausibility of the text.
- A detected encoding is a guess, so it is logged as a warning.
"""

import codecs
import logging
import os
from pathlib import Path

from mmemo.storage import fetch, is_url


logger = logging.getLogger(__name__)

# UTF-32 before UTF-16, whose mark its own begins with.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Western European and Chinese text differ in their bytes; with more candidates at once, short texts are confused.
LEGACY_ENCODINGS = (
    ("cp1252", "gb18030"),
    ("cp1250", "cp1251", "cp1253", "cp932", "cp949", "big5"),
)


def read_text_file(path: str | os.PathLike) -> str:
    """
    Reads a text file, given by its path or URL, in any encoding that [`decode_text`] detects.

    Raises:
        ValueError: If the file cannot be read or decoded.
    """
    name = os.fsdecode(path)
    if is_url(name):
        with fetch(name) as stream:
            return decode_text(stream.read(), name)
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise ValueError(f"Cannot read {name}: {error.strerror}.") from error
    return decode_text(data, name)


def decode_text(data: bytes | bytearray, name: str = "The text") -> str:
    """
    Decodes UTF-8, UTF-16, UTF-32, or text in a legacy encoding such as Windows-1252 or GB18030.

    Args:
        data (`bytes` or `bytearray`): The content of a text file, with or without a byte order mark.
        name (`str`, *optional*): The name of the file, for messages.

    Returns:
        `str`: The text without its byte order mark. A warning names the encoding if it had to be detected.

    Raises:
        ValueError: If the encoding cannot be detected, or the text does not have the encoding of its mark.
    """
    data = bytes(data)
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode(data[len(mark) :], encoding, name)
    if b"\0" in data:
        # The zeros are the high bytes of ASCII characters, of which subtitles have many in every language.
        is_big_endian = data[::2].count(0) > data[1::2].count(0)
        return _decode(data, "utf-16-be" if is_big_endian else "utf-16-le", name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        encoding = _detect(data, name, error)
    logger.warning(
        f"{name} is not UTF-8 and was decoded as {encoding}, which is a guess; if its words look wrong, convert it to "
        "UTF-8."
    )
    return _decode(data, encoding, name)


def _decode(data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not {encoding.upper()}, which its first bytes indicate ({error.reason} at byte "
            f"{error.start}); convert it to UTF-8."
        ) from error


def _detect(data: bytes, name: str, cause: UnicodeDecodeError) -> str:
    """Returns the legacy encoding in which the data is plausible text."""
    try:
        from charset_normalizer import from_bytes
    except ImportError as error:
        raise ValueError(
            f"{name} is not UTF-8 ({cause.reason} at byte {cause.start}), and detecting its encoding needs "
            "charset-normalizer: pip install charset-normalizer. Or convert it to UTF-8."
        ) from error
    for group in LEGACY_ENCODINGS:
        match = from_bytes(data, cp_isolation=list(group)).best()
        if match is not None:
            return match.encoding
    raise ValueError(
        f"{name} is not UTF-8 ({cause.reason} at byte {cause.start}), and its encoding could not be detected; convert "
        "it, for instance with iconv -f LATIN1 -t UTF-8, or decode it and pass its content."
    ) from cause
