"""JSON is checked before it is parsed: in bounded time, and without a second opinion on what is valid."""

import json
import random
import time

import pytest

from mmemo.serving.json_structure import MAX_DEPTH, check_json
from mmemo.serving.limits import TooLargeError


def check(content, max_values=100, max_fields=3):
    check_json(content if isinstance(content, bytes) else json.dumps(content).encode(), max_values, max_fields)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "a",
        {"a": 1, "b": [1, 2, {"c": 'x,y:{["\\'}]},
        [{"a": 1}, {"a": 1}],
        {"a": {"a": {"a": 1}}},
        b"",
        b"}",
        b"]",
        b":",
        b'{"a"',
        b'"\\',
        b'""""',
        b'{"a": 1} {"b": 2}',
        b"{1: 2}",
        b'["a": 1]',
        b'{"\\ud": 1, "\\ud": 2}',
    ],
    ids=repr,
)
def test_what_is_small_passes_even_if_it_is_invalid(content):
    check(content)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1, "a": 2}',
        b'{"b": {"a": 1, "a": 2}}',
        b'[{"a": 1, "\\u0061": 2}]',
        b'{"a": [1, {"x": 1}], "a": 2}',
    ],
)
def test_a_field_that_occurs_twice_raises(content):
    with pytest.raises(ValueError, match=r"^a: duplicate; send it once"):
        check(content)


def test_objects_have_a_maximum_number_of_fields():
    check({"a": 1, "b": 2, "c": 3})
    with pytest.raises(ValueError, match="more than 3 fields"):
        check({"a": 1, "b": 2, "c": 3, "d": 4})


def test_values_are_counted_as_json_defines_them():
    def count(value):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(count, parts))

    def make(depth):
        kind = rng.random()
        if depth == 0 or kind < 0.3:
            return rng.choice([1, "a,b", '"{[', None, -1.5e3, "\\"])
        if kind < 0.65:
            return [make(depth - 1) for _ in range(rng.randint(1, 4))]
        return {name: make(depth - 1) for name in rng.sample('a,"\\{:', rng.randint(1, 4))}

    rng = random.Random(0)
    for _ in range(200):
        value = make(4)
        check(value, max_values=count(value), max_fields=4)
        if count(value) > 1:
            with pytest.raises(TooLargeError, match=f"more than {count(value) - 1} values"):
                check(value, max_values=count(value) - 1, max_fields=4)


def test_levels_are_limited():
    check(b"[" * MAX_DEPTH)
    with pytest.raises(TooLargeError, match=f"more than {MAX_DEPTH} levels"):
        check(b"[" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"\\', b"\\\\", b"[]", b'["a",', b'{"a":', b",", b" ", b"1", b'"a",'])
@pytest.mark.parametrize("before", [b"", b'["', b'{"a":["'])
def test_time_is_linear(before, unit):
    content = before + unit * (2_000_000 // len(unit))
    started = time.process_time()
    try:
        check(content, max_values=1000)
    except ValueError as error:
        assert len(str(error)) < 200
    assert time.process_time() - started < 1
