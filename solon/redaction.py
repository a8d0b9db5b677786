"""Secrets struck out of texts on their way to people and files.

Secrets come from files and the environment alone, and nothing here reads them. This is the second line: a secret
that was put where none belongs (an address with a password, a key in a name) is refused, and what quotes it does not
show it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

MARK = "***"
_USER = re.compile(r"(?<=://)[^\s/@'\"<>]+(?=@)")
_QUERY = re.compile(
    r"(?i)([?&;][\w.-]{0,40}(?:token|key|secret|password|passwd|pwd|sig|signature|credential|auth)[\w.-]{0,40}=)[^&;\s#'\"<>]+"
)
_BEARER = re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}")
_KEY = re.compile(
    r"\b(?:sk-|pk-|rk-|hf_|gsk_|xai-|ghp_|gho_|github_pat_|glpat-|xox[abp]-|AKIA|AIza|eyJ)(?=[\w-]*\d)[\w-]{16,}"
)


def redacted(text: str) -> str:
    """The text without users and passwords in addresses, tokens in their queries, and keys of the usual forms.

    >>> redacted("redis://:hunter2@cache:6379/0 and https://a.example/x?api_key=abc&n=3")
    'redis://***@cache:6379/0 and https://a.example/x?api_key=***&n=3'
    """
    text = _QUERY.sub(rf"\1{MARK}", _USER.sub(MARK, text))
    return _KEY.sub(MARK, _BEARER.sub(rf"\1{MARK}", text))


def places_of_secrets(value: Any, place: str = "") -> Iterator[str]:
    """Where in a configuration a text holds what looks like a secret; keys of mappings count as well."""
    if isinstance(value, str):
        if redacted(value) != value:
            yield place
    elif isinstance(value, Mapping):
        for key, item in value.items():
            shown = redacted(str(key))
            inner = f"{place}.{shown}" if place else shown
            if shown != str(key):
                yield inner
            yield from places_of_secrets(item, inner)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from places_of_secrets(item, f"{place}.{number}" if place else str(number))
