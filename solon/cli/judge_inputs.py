"""The inputs of every `solon judges` command: models, pairs with gold verdicts, constitution, template."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from solon.cli.names import resolver
from solon.cli.nursery_names import grown_for
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineOptions
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError, nearest
from solon.feedback.prompting.templates import TEMPLATES
from solon.feedback.trials.gold import GoldPair, load_gold
from solon.files.overrides import parse_override, put
from solon.files.validation import describe_invalid

if TYPE_CHECKING:
    from nursery.grow import Nursery

LONGEST = 4096
"""Longest question in tokens, where none is configured and the judge allows it."""
NURSERY = "nursery"
"""In place of a file of pairs: pairs of the tiny world, decided by its oracles."""


class JudgeInputs:
    """Reads and checks. Raises InputError for unusable input; grows the nursery when a name needs it."""

    def __init__(
        self,
        models: Sequence[str],
        *,
        pairs: str,
        constitution: Path | None,
        template: str | None,
        limit: int,
        threads: int = 1,
        max_model_len: int = LONGEST,
        chat: Sequence[str] | None = None,
        held_out: bool = True,
        as_json: bool,
    ) -> None:
        self.console = Console(highlight=False, quiet=as_json)
        self.path = resolver([_without_variant(model) for model in models], progress=not as_json)
        self._grown = grown_for((), progress=not as_json) if pairs == NURSERY else None
        self.constitution = _constitution(constitution, self._grown, pairs)
        self.template = template_named(template, pairs)
        self.engine = EngineOptions(threads=threads, max_model_len=max_model_len, **chat_settings(chat))
        self._check(models)
        self.pairs = sample(self._pairs(pairs, limit=limit, held_out=held_out), limit)

    def _check(self, models: Sequence[str]) -> None:
        """Runs before the first engine is built."""
        from cluster.preflight.checks import check_judge

        for model in models:
            check_judge(self.path(_without_variant(model)), self.template, chat=self.engine)

    def _pairs(self, source: str, *, limit: int, held_out: bool) -> tuple[GoldPair, ...]:
        if source != NURSERY:
            return load_gold(source, self.constitution)
        from solon.cli.nursery_pairs import nursery_gold

        assert self._grown is not None
        return nursery_gold(self._grown, limit, held_out=held_out)


def chat_settings(chat: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of the chat template from the command line: `["enable_thinking=false"]`. Raises InputError."""
    args: dict[str, Any] = {}
    for text in chat or ():
        key, value, _ = parse_override(text)
        put(args, key, value, text)
    try:
        return ChatSettings(chat_template_args=args).model_dump(exclude_defaults=True)
    except ValidationError as error:
        raise InputError(f"--chat: {describe_invalid(ChatSettings, error)}") from None


def sample(pairs: Sequence[GoldPair], limit: int) -> tuple[GoldPair, ...]:
    """A random `limit` of the pairs, the same ones every time, in the order of the file."""
    if len(pairs) <= limit:
        return tuple(pairs)
    return tuple(pairs[i] for i in sorted(random.Random(0).sample(range(len(pairs)), limit)))


def model_path(model: str, *, progress: bool) -> str:
    """The path of one model; a name or a GGUF file is made into one."""
    name = _without_variant(model)
    return resolver([name], progress=progress)(name) + model.removeprefix(name)


def template_named(name: str | None, pairs: str) -> Any:
    """The template that was asked for, or the one that suits the pairs."""
    name = name or ("compact" if pairs == NURSERY else "assistant")
    if name not in TEMPLATES:
        raise InputError(
            f"there is no template {name!r}, expected one of {', '.join(TEMPLATES)}{nearest(name, TEMPLATES)}"
        )
    return name


def _without_variant(model: str) -> str:
    """`nursery:judge_fp` of `nursery:judge_fp@bf16`."""
    return model.rpartition("@")[0] if "@" in Path(model).name else model


def _constitution(path: Path | None, grown: Nursery | None, pairs: str) -> Constitution:
    if path is None and pairs == NURSERY and grown is not None:
        return Constitution.load(grown.constitution)
    if path is None:
        raise InputError("got no constitution, expected the one whose questions are asked; give --constitution FILE")
    return Constitution.load(path)
