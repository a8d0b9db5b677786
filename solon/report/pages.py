"""Templates and assets of HTML pages. All text is escaped; `text` also makes control characters visible."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solon.files.plain_text import visible
from solon.report.charts import format_number

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
ASSETS = HERE / "assets"
PLOTLY = "plotly-basic.min.js"


def shown(value: object) -> str:
    """A value as text, with characters that change the display (terminal escapes, direction controls) as escapes."""
    return "" if value is None else visible(str(value))


def figure(value: float | None) -> str:
    """A signed number, `–` where there is none."""
    return format_number(value) if value is None or value < 0 else f"+{format_number(value)}"


def environment(*folders: Path) -> Environment:
    """Templates of the report, and of further folders. Everything is escaped unless marked safe."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader([HERE / "templates", *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"text": shown, "figure": figure}
    return found


@functools.cache
def asset(name: str) -> str:
    """The content of a text asset; `plotly-basic.min.js` is kept compressed."""
    path = ASSETS / name
    if path.exists():
        return path.read_text(encoding="utf-8")
    return gzip.decompress((ASSETS / f"{name}.gz").read_bytes()).decode("utf-8")


def script_hash(script: str) -> str:
    """A script's entry in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"


def render(template: str, **values: Any) -> str:
    """A page of the report's templates."""
    return environment().get_template(template).render(**values)
