"""The report of a run, with its settings compared to the defaults; written at the end of every run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from cluster.config.run_file import RunFile
from solon.errors import InputError, one_line
from solon.files.overrides import flat_items
from solon.report.run_report import write_report

END_TIMEOUT_S = 120.0


def report_of(run: Path, out: Path | None = None) -> Path:
    """Write the report of a run directory. Raises InputError, and RunFailedError for a full disk."""
    return write_report(run, out, defaults=default_settings(run))


def default_settings(run: Path) -> dict[str, Any] | None:
    """What the settings of a run would be had its run file only named policy, judge, prompts and constitution; flat, by
    dotted key. None: `config.json` is missing, or not what this version writes."""
    try:
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        needed = [name for name, field in RunFile.model_fields.items() if field.is_required()]
        least = RunFile.parse({name: config[name] for name in needed}, source="config.json")
    except (OSError, ValueError, TypeError, KeyError, RecursionError, InputError):
        return None
    return dict(flat_items(least.model_dump(mode="json")))


async def report_at_end(run: Path) -> str:
    """Write the report when the run has ended; what goes wrong is returned, and does not change how it ended."""
    try:
        await asyncio.wait_for(asyncio.to_thread(report_of, run), END_TIMEOUT_S)
    except TimeoutError:
        return f"report.html was not written: it took longer than {END_TIMEOUT_S:.0f} s"
    except Exception as error:  # a run does not fail because its report does
        return f"report.html was not written: {one_line(str(error))}"
    return ""
