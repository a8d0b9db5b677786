"""`report.html` of a run: one file that needs no network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import solon
from solon.files.whole_file import write_whole
from solon.report.pages import PLOTLY, asset, render, script_hash
from solon.report.run_page import SECTIONS, run_page
from solon.report.store import RunStore

NAME = "report.html"


def report_page(store: RunStore, *, defaults: Mapping[str, Any] | None) -> str:
    """The page. defaults: of the settings, flat by dotted key; None: not known."""
    plotly, js = asset(PLOTLY), asset("page.js")
    return render(
        "report.html",
        run=run_page(store, defaults=defaults),
        sections=SECTIONS,
        css=asset("page.css"),
        plotly=plotly,
        js=js,
        script_hashes=f"{script_hash(plotly)} {script_hash(js)}",
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=solon.__version__,
    )


def write_report(run: Path, out: Path | None = None, *, defaults: Mapping[str, Any] | None) -> Path:
    """Write the report of a run directory, by default into it. Damaged files are named on the page.

    Raises InputError for a folder that is no run, or a path that cannot be written; RunFailedError for a full disk.
    """
    store = RunStore(run)
    try:
        store.refresh()
        page = report_page(store, defaults=defaults)
    finally:
        store.close()
    return write_whole(out or run / NAME, page, what="report")
