"""Reads what a PromQL query asks for: the metrics it names, their matchers, and the labels that it groups by.

A tokenizer and no parser: it needs to find selectors, not to evaluate. Grafana's variables must be replaced first
(`without_variables`). Raises ValueError for what is no token, and for brackets that do not match.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    |(?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*)
    |(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
    |(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)
    |(?P<operator>=~|!~|!=|==|<=|>=|[-+*/%^<>=])
    |(?P<mark>[()\[\]{},@]))""",
    re.VERBOSE,
)
GROUPERS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
AGGREGATIONS = {"sum", "max", "min", "avg", "count", "topk", "bottomk", "quantile", "stddev", "group"}
OF_COUNTERS = {"rate", "increase", "irate"}
PAIRS = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True)
class Selector:
    """One metric in a query: `Selector("up", {"job": ("=", "ray")}, "rate")`."""

    metric: str
    matchers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(operator, value) by label."""
    function: str = ""
    """The function or aggregation that is applied to it directly."""


def without_variables(query: str) -> str:
    """A query of a dashboard with values in place of Grafana's variables."""
    query = re.sub(r"\$__(?:rate_)?interval\b", "1m", query)
    return re.sub(r"\$\{?\w+\}?", ".*", query)


def tokens(query: str) -> list[tuple[str, str]]:
    """(kind, text) of every token."""
    found, place, text = [], 0, query.strip()
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"no token at {text[place : place + 20]!r} of {query!r}")
        kind = str(match.lastgroup)
        found.append((kind, match.group(kind)))
        place = match.end()
    opened: list[str] = []
    for kind, token in found:
        if kind == "mark" and token in "([{":
            opened.append(token)
        elif kind == "mark" and token in PAIRS and (not opened or opened.pop() != PAIRS[token]):
            raise ValueError(f"{token} without its bracket in {query!r}")
    if opened:
        raise ValueError(f"{opened[-1]} is not closed in {query!r}")
    return found


def selectors(query: str) -> tuple[list[Selector], set[str]]:
    """The selectors of a query, and the labels by which it groups or joins."""
    stream = tokens(query)
    found: list[Selector] = []
    grouped: set[str] = set()
    callers: list[str] = []
    place = 0
    while place < len(stream):
        kind, text = stream[place]
        following = stream[place + 1][1] if place + 1 < len(stream) else ""
        if kind == "name" and text in GROUPERS:
            end = next(i for i in range(place, len(stream)) if stream[i][1] == ")")
            grouped |= {token for kind, token in stream[place + 1 : end] if kind == "name"}
            place = end
        elif kind == "name" and text not in WORDS and following != "(" and text not in AGGREGATIONS:
            matchers, place = _matchers(stream, place + 1) if following == "{" else ({}, place)
            found.append(Selector(text, matchers, callers[-1] if callers else ""))
        elif text == "(":
            # The name before the bracket, or before a grouping in between: sum by (run) (…).
            callers.append(_caller(stream, place))
        elif text == ")":
            callers.pop()
        place += 1
    return found, grouped


def _caller(stream: list[tuple[str, str]], bracket: int) -> str:
    place = bracket - 1
    if place >= 0 and stream[place][1] == ")":
        while stream[place][1] != "(":
            place -= 1
        if place < 1 or stream[place - 1][1] not in GROUPERS:
            return ""
        place -= 2
    if place < 0:
        return ""
    kind, text = stream[place]
    return text if kind == "name" and text not in WORDS | GROUPERS else ""


def _matchers(stream: list[tuple[str, str]], brace: int) -> tuple[dict[str, tuple[str, str]], int]:
    matchers: dict[str, tuple[str, str]] = {}
    place = brace + 1
    while stream[place][1] != "}":
        (kind, label), (_, operator), (value_kind, value) = stream[place : place + 3]
        if kind != "name" or operator not in ("=", "!=", "=~", "!~") or value_kind != "string":
            raise ValueError(f"{label} {operator} {value} is no matcher")
        matchers[label] = (operator, value[1:-1])
        place += 3
        if stream[place][1] == ",":
            place += 1
    return matchers, place
