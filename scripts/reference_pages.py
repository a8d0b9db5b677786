"""Makes docs/reference/ and docs/decisions/index.md: `python scripts/reference_pages.py`; `--check` compares.

Commands come from the command line itself, keys from the classes that own the sections of a run file.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

from cluster.align.compare_file import CompareFile, MethodSection  # noqa: E402
from cluster.align.file import AlignFile  # noqa: E402
from cluster.align.rounds import Rounds  # noqa: E402
from cluster.align.stages import known_stages as align_stages  # noqa: E402
from cluster.config.pools import PoolSpec  # noqa: E402
from cluster.config.run_file import RunFile  # noqa: E402
from cluster.stages import known_stages  # noqa: E402
from solon.cli.label_settings import LabelSettings  # noqa: E402
from solon.cli.main import app  # noqa: E402

MADE = "Made from the code by `python scripts/reference_pages.py`; a test compares them.\n"


def commands() -> str:
    """docs/reference/commands.md."""
    root = typer.main.get_command(app)
    parts = [f"# Commands\n\n{MADE}\nExit code 0: success; 1: the run failed; 2: the input is wrong.\n"]
    return "\n".join([*parts, *_command(root, "solon", depth=2)])


def _command(command: Any, name: str, *, depth: int) -> Iterator[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    inner = command.commands if hasattr(command, "commands") else {}
    if name != "solon":
        yield f"{'#' * depth} `{name}`\n"
    if text := inspect.cleandoc(command.help or "").replace("\b\n", ""):
        yield _plain(text) + "\n"
    if not inner:
        yield f"    {command.get_usage(context).removeprefix('Usage: ')}\n"
    rows = [row for parameter in command.params if (row := _parameter(parameter, context)) is not None]
    if rows and not inner:
        yield "\n".join(["| argument or option | default | meaning |", "|---|---|---|", *rows]) + "\n"
    for key, child in sorted(inner.items()):
        if not child.hidden:
            yield from _command(child, f"{name} {key}", depth=depth + (name != "solon"))


def _parameter(parameter: Any, context: Any) -> str | None:
    if getattr(parameter, "hidden", False) or parameter.name == "help":
        return None
    if parameter.param_type_name == "option":
        words = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
    else:
        words = f"`{(parameter.metavar or parameter.name).upper()}`"
    default = parameter.get_default(context)
    shown = "required" if parameter.required else _default(default) if not isinstance(default, bool) else ""
    return f"| {words} | {shown} | {_cell(_plain(getattr(parameter, 'help', '') or ''))} |"


def configuration() -> str:
    """docs/reference/configuration.md."""
    intro = (
        "# Run file\n\n" + MADE + "\n"
        "A run file is TOML with four required keys. Unknown keys are refused with the nearest known one. Every key\n"
        "can be set on the command line: `--set learn.epochs=2`. `none` unsets an optional key that has a default.\n"
    )
    return "\n".join([intro, *_section(RunFile, "")])


def pipelines() -> str:
    """docs/reference/pipelines.md."""
    intro = (
        "# Pipeline file\n\n" + MADE + "\n"
        "A pipeline file names pools and lists stages ([Pipelines](../pipelines.md)). Keys of a run file that no pool\n"
        "sets stand at the top of the file, or in the stage that moves them ([Run file](configuration.md)).\n"
    )
    parts = [intro, *_section(PoolSpec, "pools.NAME")]
    for kind, stage in sorted(known_stages().items()):
        title, *rest = _section(stage, "STAGE")
        parts += [title.replace("[STAGE]", f'[[stages]] type = "{kind}"'), *rest]
        if stage.moved:
            keys = ", ".join(
                f"`{key}`" if key == place else f"`{key}` (`{place}`)" for key, place in stage.moved.items()
            )
            parts.append(f"It also takes these of the run file: {keys}.\n")
    return "\n".join(parts)


def alignments() -> str:
    """docs/reference/alignments.md."""
    intro = (
        "# Alignment file and comparison file\n\n" + MADE + "\n"
        "An alignment file lists stages that make files ([Align in several stages](../align.md)); a comparison file\n"
        "lists methods, each a list of such stages ([Choose a method](../choosing-a-method.md)).\n"
    )
    parts = [intro, "## Alignment file\n", *_section(AlignFile, ""), *_section(LabelSettings, "label")]
    for kind, stage in sorted({**align_stages(), "iterate": Rounds}.items()):
        title, *rest = _section(stage, "STAGE")
        parts += [title.replace("[STAGE]", f'[[stages]] type = "{kind}"'), *rest]
    parts += ["## Comparison file\n", *_section(CompareFile, ""), *_section(MethodSection, "methods")]
    return "\n".join(parts)


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    docs = attribute_docs(model)
    inner = {name: found for name, field in model.model_fields.items() if (found := _model_in(field)) is not None}
    optional = {name: found for name, field in model.model_fields.items() if (found := _optional(field)) is not None}
    if path:
        yield f"## `[{path}]`\n"
        yield _plain(inspect.getdoc(model) or "") + "\n"
    rows = [
        f"| `{name}` | {'a section or none' if name in optional else _cell(_type(field))} | {_field_default(field)} | "
        f"{_cell(_plain(docs.get(name, '')))} |"
        for name, field in model.model_fields.items()
        if name not in inner
    ]
    if rows:
        yield "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"
    for name, found in {**inner, **optional}.items():
        yield from _section(found, f"{path}.{name}" if path else name)


def attribute_docs(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field of a class and of those that it inherits from."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = inspect.cleandoc(text)
    return found


def _model_in(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _optional(field: FieldInfo) -> type[BaseModel] | None:
    """The class of a section that may be left out."""
    if typing.get_origin(field.annotation) not in (typing.Union, types.UnionType):
        return None
    kinds = [kind for kind in typing.get_args(field.annotation) if kind is not type(None)]
    (kind,) = kinds if len(kinds) == 1 else (None,)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type(field: FieldInfo) -> str:
    bounds = []
    for bound in field.metadata:
        for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            if (limit := getattr(bound, name, None)) is not None:
                bounds.append(f"{sign} {limit:,}")
        if (length := getattr(bound, "min_length", None)) is not None and length > 0:
            bounds.append("not empty")
    return ", ".join([_name_of(field.annotation), *bounds])


def _name_of(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _name_of(inner[0])
    if origin is typing.Literal:
        return " or ".join(f'`"{value}"`' if isinstance(value, str) else f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if part is type(None) else _name_of(part) for part in inner)
    if origin is not None and inner:
        name = {"tuple": "list", "Mapping": "table", "dict": "table"}.get(origin.__name__, origin.__name__)
        parts = [_name_of(part) for part in inner if part is not Ellipsis]
        return f"{name} of {' to '.join(dict.fromkeys(parts))}"
    names = {"str": "text", "float": "number", "int": "whole number", "bool": "true or false"}
    return names.get(getattr(kind, "__name__", ""), getattr(kind, "__name__", str(kind)))


def _field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    return _default(value)


def _default(value: Any) -> str:
    if value is None or value == () or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"`{value!r}`".replace("'", '"') if value else "empty"
    if isinstance(value, tuple | list):
        return f"`{list(value)}`"
    return f"`{value}`"


def _plain(text: str) -> str:
    """Paragraphs as single lines, typer's markup and doctests left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(">>>")]
    return re.sub(r"(?<!\n)\n(?![\n\s*-])", " ", "\n".join(lines)).strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def decisions() -> str:
    """docs/decisions/index.md."""
    lines = ["# Decisions\n", "What was chosen, among which alternatives, and why.\n"]
    for path in sorted((DOCS / "decisions").glob("[0-9]*.md")):
        if path.name.startswith("0000"):
            continue
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


PAGES = {
    DOCS / "reference" / "commands.md": commands,
    DOCS / "reference" / "configuration.md": configuration,
    DOCS / "reference" / "pipelines.md": pipelines,
    DOCS / "reference" / "alignments.md": alignments,
    DOCS / "decisions" / "index.md": decisions,
}


def main() -> int:
    if "--check" in sys.argv:
        stale = [str(path.relative_to(ROOT)) for path, make in PAGES.items() if path.read_text("utf-8") != make()]
        if stale:
            print(f"{', '.join(stale)}: not as the code is, run `python scripts/reference_pages.py`", file=sys.stderr)
        return 1 if stale else 0
    for path, make in PAGES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(make(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
