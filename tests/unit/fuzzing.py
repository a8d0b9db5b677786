"""Valid files, corrupted in every way that disks, editors, scripts and users do it. Seeded, so a find is repeatable."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Spoil = Callable[[random.Random, bytes], bytes]

DEEP = 100_000
HOSTILE_BYTES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",  # half a surrogate pair, as some programs write it
    b"\xc3",
    b"\x1b[2J",
    b"\r",
    b"\n\n",
    b"\x85",
    "\u2028\u202e".encode(),
    "e\u0301\U0001f600".encode(),
)
HOSTILE_JSON = (
    "null",
    "true",
    "-1",
    "0",
    "0.5",
    "1e400",
    "-1e400",
    "NaN",
    "9" * 25,
    "9" * 5000,
    '""',
    '" "',
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[31m\\n\\u202e"',
    '"' + "x" * 20_000 + '"',
    "[]",
    "{}",
    "[[[[]]]]",
    "[1, 2]",
    '["a"]',
    '[{"role": "user"}]',
    '[{"role": "tool", "content": "x"}]',
    '{"a": {"b": {"c": 1}}}',
    "[" * DEEP,
    '{"a":' * DEEP,
    "[" * 900 + "]" * 900,
)
HOSTILE_TOML = (
    "true",
    "-1",
    "0",
    "0.5",
    "inf",
    "nan",
    "9" * 25,
    "9" * 5000,
    "1e400",
    "0x" + "f" * 40,
    '""',
    '" "',
    '"\\u0000"',
    '"\\ud800"',
    '"' + "x" * 20_000 + '"',
    "'''\n'''",
    "[]",
    "{}",
    "[1, 2]",
    '["a", "b"]',
    "[" * DEEP,
    "[" * 400 + "]" * 400,
    "{a = " * 400 + "1" + "}" * 400,
    "1979-05-27",
    "07:32:00",
    "1979-13-45T99:99:99Z",
    '"~nobody-of-this-name/x"',
    '"nursery:"',
    '"/dev/null/x"',
    '"a\\u0000b"',
)
HOSTILE_YAML = (
    "null",
    "~",
    "yes",
    "-1",
    "0",
    ".inf",
    ".nan",
    "9" * 25,
    "9" * 5000,
    "1:60:60",
    "0o777",
    "2001-99-99",
    "2001-01-01",
    "0001-01-01 00:00:00 +99:99",
    "!!binary abc",
    "!!float x",
    "!!int ''",
    "!!timestamp x",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a]",
    "!!python/object/apply:os.system ['exit 1']",
    "!!python/name:os.system",
    "!!str {a: b}",
    "!!map [a]",
    "!unknown x",
    '""',
    '"\\ud800"',
    '"\\0"',
    '"' + "x" * 20_000 + '"',
    "|\n  text",
    "[]",
    "{}",
    "[1, 2]",
    "[[a]]",
    "{a: {b: c}}",
    "[" * 5_000,
    "[" * 400 + "]" * 400,
    "&a [*a]",
    "&a {<<: *a}",
    "*missing",
    "{<<: 1}",
    "{<<: [1]}",
    "{? [a] : b}",
    "{? {a: b} : c}",
    "@", "`", "%", "\t- x",
)  # fmt: skip


def _flip(rng: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if spoilt:
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_out(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 40) :]


def _insert(rng: random.Random, data: bytes) -> bytes:
    place = rng.choice((0, len(data), rng.randrange(len(data) + 1)))
    return data[:place] + rng.choice(HOSTILE_BYTES) + data[place:]


def _repeat_a_line(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    if not lines:
        return data
    line = rng.choice(lines)
    lines.insert(rng.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _shuffle_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines)


def _as_utf16(rng: random.Random, data: bytes) -> bytes:
    return data.decode("utf-8", "replace").encode(rng.choice(("utf-16", "utf-32", "latin-1")), "replace")


BYTES: Sequence[Spoil] = (_flip, _flip, _cut, _cut_out, _insert, _insert, _repeat_a_line, _shuffle_lines, _as_utf16)


def spoil_json(rng: random.Random, data: bytes) -> bytes:
    """One value of one row, or of the whole file, becomes a hostile one; or a key occurs twice or is misspelt."""
    lines = data.decode().splitlines()
    whole = len(lines) > 1 and lines[0].strip() in "[{"
    texts = [data.decode()] if whole else lines
    number = rng.randrange(len(texts))
    marker = "\u0001here\u0001"
    texts[number] = json.dumps(_marked(rng, json.loads(texts[number]), marker)).replace(
        json.dumps(marker), rng.choice(HOSTILE_JSON), 1
    )
    return "\n".join(texts).encode()


def _marked(rng: random.Random, value: Any, marker: str) -> Any:
    """The value with the marker somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {**value, key + "x": value[key], "": marker}
        return {**value, key: _marked(rng, value[key], marker)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], _marked(rng, value[place], marker), *value[place + 1 :]]
    return marker


def spoil_toml(rng: random.Random, data: bytes) -> bytes:
    """The value of one line becomes a hostile one, or a line that does not belong is added."""
    lines = data.decode().splitlines()
    number = rng.randrange(len(lines))
    key, equals, _ = lines[number].partition("=")
    match rng.randrange(4):
        case 0 if equals:
            lines.insert(number, f"{'.'.join([key.strip()] * rng.choice((2, 3, 3000)))} = 1")
        case 1:
            lines.insert(number, rng.choice(("[a", "[[a]]", "[]", "= 1", "a", "[policy.b]", "[feedback]", '"" = 1')))
        case _ if equals:
            lines[number] = f"{key}= {rng.choice(HOSTILE_TOML)}"
        case _:
            lines[number] = rng.choice(HOSTILE_TOML)
    return "\n".join(lines).encode()


def spoil_yaml(rng: random.Random, data: bytes) -> bytes:
    """One scalar becomes a hostile one; or the indentation of a line changes."""
    lines = data.decode().splitlines()
    number = rng.randrange(len(lines))
    scalars = list(re.finditer(r"(?<=: )[^{}\[\],]+|(?<=- )[^{}\[\],]+", lines[number]))
    if rng.random() < 0.15 or not scalars:
        lines[number] = rng.choice(("  ", "\t", "- ", "? ", "  - ", "--- ", "... ", "# ", "<<: ")) + lines[number]
    else:
        found = rng.choice(scalars)
        lines[number] = lines[number][: found.start()] + rng.choice(HOSTILE_YAML) + lines[number][found.end() :]
    return "\n".join(lines).encode()


def spoilt(rng: random.Random, data: bytes, own: Spoil | None) -> bytes:
    """The file, corrupted once or a few times; `own` knows the format, and can only corrupt a whole file."""
    first = own if own is not None and rng.random() < 0.6 else rng.choice(BYTES)
    data = first(rng, data)
    while rng.random() < 0.3:
        data = rng.choice(BYTES)(rng, data)
    return data
