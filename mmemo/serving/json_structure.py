"""
Checks the structure of JSON before it is parsed.

A parser and a validator that collect every error take time and memory for each of them: a million unknown fields in a
body of 12 MB took seconds and a gigabyte. This scan stops at the first limit that is exceeded. It only looks at
brackets, commas, colons and the beginnings of strings, so it leaves invalid JSON to the parser.
"""

import json
import re

from mmemo.serving.limits import TooLargeError


# Bodies have five levels.
MAX_DEPTH = 16
_TOKEN = re.compile(rb'["\[\]{}:,]')
# Possessive, so linear in time.
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
# A match holds the interpreter, so long strings are matched in pieces.
PIECE_BYTES = 2**18


def check_json(content: bytes, max_values: int, max_fields: int) -> None:
    """
    Checks the size of all objects and arrays, and that no object has two fields of the same name.

    Args:
        content (`bytes`): The JSON. Where it is invalid the check ends, and parsing it fails.
        max_values (`int`): Maximum number of values: objects, arrays and what they contain.
        max_fields (`int`): Maximum number of fields of an object.

    Raises:
        TooLargeError: If there are more than `max_values` values, or more than `MAX_DEPTH` levels.
        ValueError: If an object has more than `max_fields` fields, or a field twice.
    """
    open_containers: list[set[bytes] | None] = []  # the names of an object's fields; `None` for an array
    values, position = 1, 0
    name: bytes | None = None  # the last token, if it is a string
    while found := _TOKEN.search(content, position):
        token, position = found[0], found.end()
        if token == b'"':
            if name is not None:
                return
            end = _end_of_string(content, position)
            name, position = content[position:end], end + 1
            continue
        if token == b":":
            fields = open_containers[-1] if open_containers else None
            if name is None or fields is None:
                return
            _add_field(fields, name, max_fields)
        elif token in b"]}":
            if not open_containers:
                return
            open_containers.pop()
        else:
            values += 1
            if token != b",":
                open_containers.append(set() if token == b"{" else None)
            if values > max_values:
                raise TooLargeError(f"The JSON has more than {max_values} values, the limit of this service.")
            if len(open_containers) > MAX_DEPTH:
                raise TooLargeError(f"The JSON has more than {MAX_DEPTH} levels of objects and arrays.")
        name = None


def _end_of_string(content: bytes, start: int) -> int:
    """Returns the index of the quote that ends a string, or the length of the content."""
    end = content.find(b'"', start)
    if end >= 0 and content.find(b"\\", start, end) < 0:
        return end
    while start < len(content) and content[start : start + 1] != b'"':
        found = _IN_STRING.match(content, start, start + PIECE_BYTES)
        if not found or found.end() == start:  # a backslash at the very end
            return len(content)
        start = found.end()
    return start


def _add_field(fields: set[bytes], name: bytes, max_fields: int) -> None:
    if b"\\" in name:
        try:
            name = json.loads(b'"%b"' % name).encode(errors="surrogatepass")
        except ValueError:
            return  # the parser rejects it
    if name in fields:
        raise ValueError(f"{name.decode(errors='replace')}: duplicate; send it once.")
    fields.add(name)
    if len(fields) > max_fields:
        raise ValueError(f"An object has more than {max_fields} fields; /docs lists the valid ones.")
