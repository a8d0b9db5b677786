"""The report and the live page in a browser: they draw, can be used with keys alone, and have no serious fault."""

from __future__ import annotations

import importlib.resources
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from solon.report.run_report import write_report
from tests.unit.attacks import MARKUP, ORDER, TERMINAL
from tests.unit.report.run_folders import lines, make_run, metrics

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Tests may run as root, for whom Chromium has no sandbox.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = ("good day", "no", "gladly , it is red", "it is red", *TERMINAL, *ORDER, *MARKUP)
    return make_run(tmp_path_factory.mktemp("runs") / "mine", steps=60, texts=texts)


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    """Of a live page in a process of its own; with its token."""
    command = [sys.executable, "-m", "solon", "watch", str(run.parent), "--port", "0", "--name", "ada"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    line = process.stdout.readline()
    yield line.split(" on ")[1].split(" ;")[0]
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0


class Page:
    """A page of the browser that remembers its errors."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("dialog", lambda dialog: (self.errors.append("a dialog opened"), dialog.dismiss()))

    def until(self, condition: str) -> None:
        """Wait until an expression holds. The page's policy forbids `wait_for_function`, which evaluates text."""
        deadline = time.monotonic() + 20
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            self.page.wait_for_timeout(50)

    def drawn(self) -> int:
        """Figures, once they are drawn."""
        self.until("document.querySelectorAll('.chart .main-svg').length > 0")
        return int(
            self.page.evaluate(
                "new Set([...document.querySelectorAll('.main-svg')].map(e => e.closest('.chart').id)).size"
            )
        )

    def faults(self) -> list[str]:
        """Serious faults that axe finds."""
        script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
        self.page.evaluate(script)
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in ("serious", "critical")]

    def width(self) -> int:
        """Of the content, pixels."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def close(self) -> None:
        """Close it; there was no error."""
        self.context.close()
        assert self.errors == []


@pytest.fixture(params=["light", "dark", "phone"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": {"viewport": PHONE, "color_scheme": "dark"},
    }
    return kinds[request.param]


def test_the_report_is_readable_without_a_network(
    browser: Any, run: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = write_report(run, tmp_path / "report.html", defaults={})
    one = Page(browser, offline=True, **options)
    one.page.goto(path.as_uri())
    assert one.drawn() >= 9
    assert one.faults() == []
    assert one.width() <= one.page.viewport_size["width"]
    one.close()


def test_figures_follow_a_change_between_light_and_dark(browser: Any, run: Path, tmp_path: Path) -> None:
    path = write_report(run, tmp_path / "report.html", defaults={})
    one = Page(browser, color_scheme="light")
    one.page.goto(path.as_uri())
    one.drawn()
    colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
    light = one.page.evaluate(colour)
    one.page.emulate_media(color_scheme="dark")
    one.until(f"{colour} !== {json.dumps(light)}")
    one.close()


def test_a_report_of_a_thousand_steps_is_below_five_megabytes(browser: Any, run: Path, tmp_path: Path) -> None:
    long = tmp_path / "long"
    shutil.copytree(run, long)
    lines(long / "metrics.jsonl", [metrics(step) for step in range(1000)])
    path = write_report(long, defaults={})
    assert path.stat().st_size < 5_000_000
    one = Page(browser, offline=True)
    one.page.goto(path.as_uri())
    assert one.drawn() >= 9
    one.close()


def test_every_page_draws_without_serious_faults(browser: Any, address: str, options: dict[str, Any]) -> None:
    one = Page(browser, **options)
    one.page.goto(address)
    base = address.partition("/?")[0]
    for path in (
        "/",
        "/?run=mine",
        "/runs/mine",
        "/runs/mine/labels",
        "/runs/mine/groups/5-0",
        "/runs/mine/heldout",
        "/runs/mine/sql?q=SELECT+*+FROM+labels+LIMIT+5",
    ):
        one.page.goto(base + path)
        if path in ("/?run=mine", "/runs/mine"):
            assert one.drawn() > 0
        assert one.faults() == [], path
        assert one.width() <= one.page.viewport_size["width"], path
    one.close()


def test_a_reader_filters_opens_overrules_and_comes_back_with_keys_alone(browser: Any, address: str, run: Path) -> None:
    one = Page(browser)
    page = one.page
    page.goto(address)
    page.goto(address.partition("/?")[0] + "/runs/mine/labels")
    one.until("document.body.innerText.includes('120 groups')")
    page.keyboard.press("/")
    page.keyboard.type("gladly")
    one.until("document.querySelector('#rows p').innerText !== '120 groups'")
    one.until("location.search === '?q=gladly'")
    found = page.locator("#rows p").first.inner_text()
    page.reload()
    assert page.locator("#rows p").first.inner_text() == found  # what was chosen is in the address
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/groups/**")
    group = page.url
    page.keyboard.press("n")
    page.wait_for_url(lambda url: "/groups/" in url and url != group)
    page.keyboard.press("p")
    page.wait_for_url(group)
    page.locator(".human summary").first.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # the second verdict: no
    page.keyboard.press("Tab")
    page.keyboard.type("rude <b>")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=no by ada: rude <b>")
    page.keyboard.press("u")
    page.wait_for_url("**/labels?q=gladly")
    line = json.loads((run / "human-labels.jsonl").read_text().splitlines()[-1])
    assert (line["verdict"], line["who"], line["reason"]) == ("no", "ada", "rude <b>")
    one.close()


def test_the_slider_shows_one_step(browser: Any, address: str) -> None:
    one = Page(browser)
    one.page.goto(address)
    one.page.goto(address.partition("/?")[0] + "/runs/mine/labels")
    one.page.uncheck("#any-step")
    one.page.focus("#step")
    one.page.keyboard.press("ArrowLeft")
    one.until("document.querySelector('#rows p').innerText === '2 groups'")
    assert "step=58" in one.page.url
    one.close()


def test_the_overview_follows_a_run(browser: Any, address: str, run: Path) -> None:
    growing = run.parent / "growing"
    make_run(growing, steps=2)
    (growing / "summary.json").unlink()
    (growing / "live.json").write_text(json.dumps({"time": time.time(), "pid": os.getpid(), "host": "elsewhere"}))
    lines(growing / "events.jsonl", [{"time": time.time(), "event": "started", "config_hash": "0", "step": 0}])
    one = Page(browser)
    one.page.goto(address)
    one.page.goto(address.partition("/?")[0] + "/runs/growing")
    before = one.page.locator("#live").inner_text()
    make_run(growing, steps=5)
    one.until(f"document.querySelector('#live').innerText !== {json.dumps(before)}")
    one.until("document.body.innerText.includes('20 with 40 tokens')")
    one.drawn()
    one.close()


def test_a_stranger_with_the_address_alone_sees_nothing(browser: Any, address: str) -> None:
    one = Page(browser)
    reply = one.page.goto(address.partition("?")[0])
    assert reply.status == 403
    assert "mine" not in one.page.content()
    one.context.close()
