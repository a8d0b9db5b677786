"""Pages about a long run: how soon the live page of 1,000 steps and a million labels is drawn, and the report's size.

    python benchmarks/pages.py [--quick] [--json PATH]

The run is made up: 16 groups of 8 answers and 1,000 labels a step. Needs Chromium.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Page, sync_playwright

from benchmarks._harness import Row, arguments, report
from solon.report.run_report import write_report
from tests.unit.report.run_folders import label, make_run, part, rollout

PRINCIPLES = ("polite", "brief", "helpful", "harmless", "truthful")
PATHS = (
    "labels",
    "labels?principle=polite",
    "labels?q=fox",
    "labels?step=10",
    "groups/80-0",
    "sql?q=SELECT+count(*)+FROM+labels",
)


def make_long_run(path: Path, steps: int) -> Path:
    """A run of this many steps, with a thousand labels in each."""
    make_run(path, steps=steps)
    for step in range(steps):
        ordinals = range(step * 16, step * 16 + 16)
        texts = [f"the fox eats eggs , said {ordinal}" for ordinal in ordinals]
        part(path, "rollouts", [rollout(o, i, text, step=step) for o, text in zip(ordinals, texts, strict=True)
                                for i in range(8)], step)  # fmt: skip
        part(path, "labels", [_label(step, number) for number in range(1000)], step)
    return path


def _label(step: int, number: int) -> dict[str, Any]:
    made = label(step * 16 + number // 63, number % 8, PRINCIPLES[number % 5])
    return made | {"label_id": f"{step}-{number}", "margin": 4 * math.sin(number * 7.3 + step)}


def drawn_s(page: Page, address: str) -> float:
    """Seconds until the first figure of a page is drawn."""
    start = time.monotonic()
    page.goto(address)
    while not page.evaluate("document.querySelectorAll('.main-svg').length"):
        page.wait_for_timeout(10)
    return time.monotonic() - start


def live_rows(run: Path) -> list[Row]:
    """The first look at a run, and further ones when its labels are read."""
    command = [sys.executable, "-m", "solon", "watch", str(run.parent), "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process,
        sync_playwright() as play,
    ):
        assert process.stdout is not None
        address = process.stdout.readline().split(" on ")[1].split(" ;")[0]
        base = f"{address.partition('/?')[0]}/runs/{run.name}"
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        start = time.monotonic()
        rows = [Row("live page of a million labels: first figures, s", drawn_s(page, base), goal="<= 2")]
        while "being read" in page.inner_text("#live"):
            page.wait_for_timeout(50)
        rows.append(Row("all labels read, s", time.monotonic() - start))
        rows.append(Row("overview again, s", drawn_s(page, base), goal="<= 2"))
        for path in PATHS:
            start = time.monotonic()
            page.goto(f"{base}/{path}")
            rows.append(Row(f"{path.partition('=')[0]}, s", time.monotonic() - start, goal="<= 2"))
        browser.close()
        process.terminate()
    return rows


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="solon-") as folder:
        run = make_long_run(Path(folder) / "long", 50 if options.quick else 1000)
        rows = live_rows(run)
        start = time.monotonic()
        path = write_report(run, defaults={})
        rows.append(Row("report written, s", time.monotonic() - start))
        rows.append(Row("report, MB", path.stat().st_size / 1e6, goal="<= 5"))
    report("pages", rows, options.json)


if __name__ == "__main__":
    main()
