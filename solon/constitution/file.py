"""A constitution as text: strict reading of YAML, and readable YAML for people.

The content is checked in `solon.constitution.constitution`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from solon.errors import InputError

WIDTH = 110
"""Line width of written YAML."""
MAX_CHARACTERS = 256 * 1024
"""Most characters of a file. PyYAML reads that much in a second or two; constitutions by people are far smaller."""
MAX_DEPTH = 24
MAX_VALUES = 20_000
"""Most values in a file after every alias is expanded."""


def parse_yaml(text: str, *, what: str) -> Any:
    """The content of a YAML text. Raises InputError with line and column.

    >>> parse_yaml("id: core", what="constitution c.yaml")
    {'id': 'core'}
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{what} has {len(text):,} characters, expected {MAX_CHARACTERS:,} at most")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{what}{where}: {error.problem or error.context}; fix the YAML") from None
    except RecursionError:
        raise InputError(f"{what} is nested too deeply, expected five levels at most") from None
    except Exception as error:
        # A scalar that its tag cannot represent (an invalid date, a number with too many digits): PyYAML passes on
        # any exception that Python raises for it.
        said = " ".join(str(error).split())
        raise InputError(f"{what} is not YAML: {said}; put texts and dates in quotes") from None


def format_yaml(content: dict[str, Any]) -> str:
    """YAML in the order of the keys with long texts folded; `parse_yaml` reads it back unchanged."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)


class _Loader(yaml.SafeLoader):
    """YAML that refuses duplicate keys: one of the two values would silently be ignored.

    It also refuses unbounded growth: nested aliases of lists, and recursive values. Both are found before anything is
    built.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open: list[list[int]] = []
        """[values, levels] of the nodes being composed, outermost first."""
        self._finished: dict[int, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        is_alias = isinstance(event, yaml.AliasEvent)
        self._open.append([1, 1])
        if len(self._open) > MAX_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        values, levels = self._open.pop()
        if is_alias:
            if id(node) not in self._finished:
                problem = "an alias occurs inside its own anchor"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            values, levels = self._finished[id(node)]
        self._finished[id(node)] = values, levels
        if len(self._open) + levels > MAX_DEPTH:
            raise RecursionError
        if self._open:
            around = self._open[-1]
            around[0], around[1] = around[0] + values, max(around[1], levels + 1)
            values = around[0]
        if values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values, counting expanded aliases"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                # As written and as parsed: "1" and 1 are one mark, and so are 1 and 0x1.
                ways = {key.value, self.construct_object(key)}
                if seen & ways:
                    raise yaml.MarkedYAMLError(
                        problem=f"key `{key.value}` occurs twice; remove one", problem_mark=key.start_mark
                    )
                seen |= ways
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        try:  # JSON writes a character beyond 16 bits as two escapes, which PyYAML does not join
            return value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            problem = "half a character (a lone surrogate), expected text"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None


class _Dumper(yaml.SafeDumper):
    """No aliases: editing one place must not change another."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Unquoted, PyYAML would read these as line breaks.
        is_odd = any(c in data for c in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if is_odd else None)


_Dumper.add_representer(str, _Dumper.represent_str)
