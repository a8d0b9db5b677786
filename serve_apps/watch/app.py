"""The application of the live page: pages about runs, the label browser, labels of people, SQL."""

from __future__ import annotations

import html
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Form, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from serve_apps.watch.access import LOOPBACK, Access
from serve_apps.watch.browse import ORDERS, PAGE, Filter, around, choices, group, label_of, listed
from serve_apps.watch.human import add_label, gold_pairs, has_label, verdicts
from serve_apps.watch.runs import OpenRun, Runs
from solon.errors import InputError, RunFailedError
from solon.report import sql
from solon.report.charts import format_number
from solon.report.pages import PLOTLY, asset, environment
from solon.report.run_answers import heldout_pairs
from solon.report.run_page import SECTIONS, run_page
from solon.report.side_by_side import side_by_side

ASSETS = {
    PLOTLY: "text/javascript",
    "page.js": "text/javascript",
    "watch.js": "text/javascript",
    "htmx.min.js": "text/javascript",
    "page.css": "text/css",
    "watch.css": "text/css",
}
HELDOUT_PAGE = 40
LOAD_S = 1.0
LABEL_S = 20.0
Defaults = Callable[[Path], Mapping[str, Any] | None]


class Pages:
    """Renders templates with the values that every page needs."""

    def __init__(self, runs: Runs, *, who: str, defaults: Defaults) -> None:
        self.runs, self.who, self.defaults = runs, who, defaults
        self._environment = environment(Path(__file__).parent / "templates")
        self._environment.globals |= {"link": link, "verdicts_of": verdicts, "json": json}
        self._environment.filters["number"] = format_number
        self._cached: dict[str, tuple[int, dict[str, Any]]] = {}

    def render(self, template: str, **values: Any) -> HTMLResponse:
        """A page."""
        text = self._environment.get_template(template).render(who=self.who, single=self.runs.is_single, **values)
        return HTMLResponse(text.encode("utf-8", "replace"))

    def open(self, name: str) -> OpenRun:
        """The run of this name. Raises HTTPException 404."""
        found = self.runs.get(name)
        if found is None:
            raise HTTPException(404, "there is no run of this name; it may have been moved")
        return found

    def loaded(self, name: str) -> OpenRun:
        """The same; waits a moment for its labels, which suffices for most runs."""
        found = self.open(name)
        found.may_load.set()
        found.store.loaded.wait(LOAD_S)
        return found

    def values(self, name: str, run: OpenRun) -> dict[str, Any]:
        """What the page of a run shows; made once for each version of its tables."""
        version, found = self._cached.get(name, (-1, {}))
        if version != run.version:
            version, has_rows = run.version, run.store.loaded.is_set()
            found = run_page(run.store, defaults=self.defaults(run.store.path), answers=5, has_rows=has_rows)
            self._cached[name] = (version, found)
        run.may_load.set()
        return found


def link(path: str, chosen: Filter | None = None, **changes: Any) -> str:
    """An address with the filter of the browser in it."""
    values = {} if chosen is None else {key: getattr(chosen, key) for key in Filter.model_fields}
    kept = {key: value for key, value in (values | changes).items() if value not in ("", None, 0) or key == "step"}
    kept = {key: value for key, value in kept.items() if value is not None and value != ""}
    if kept.get("order") == "doubt":
        del kept["order"]
    return f"{path}?{urlencode(kept)}" if kept else path


def build_watch(
    runs: Runs,
    *,
    token: str,
    port: int,
    who: str = "",
    defaults: Defaults = lambda _: None,
    hosts: tuple[str, ...] = LOOPBACK,
) -> FastAPI:
    """The application. defaults: of the settings of a run, to tell which were changed. hosts: see `Access`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        runs.close()

    app = FastAPI(title="Solon watch", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Access, token=token, port=port, hosts=hosts)
    pages = Pages(runs, who=who, defaults=defaults)

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        page = pages.render("error.html", status=error.status_code, message=str(error.detail))
        page.status_code = error.status_code
        return page

    @app.exception_handler(RequestValidationError)
    async def misread(_: Request, error: RequestValidationError) -> Response:
        places = ", ".join(str(one["loc"][-1]) for one in error.errors())
        page = pages.render("error.html", status=422, message=f"the address has a wrong value of {places}")
        page.status_code = 422
        return page

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        message = (
            f"the page could not be made: {type(error).__name__}; the files of the run may be damaged, see solon doctor"
        )
        page = pages.render("error.html", status=500, message=message)
        page.status_code = 500
        return page

    @app.get("/assets/{name}")
    def assets(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404, "there is no such file")
        return Response(asset(name), media_type=ASSETS[name], headers={"cache-control": "private, max-age=3600"})

    _add_overviews(app, pages)
    _add_browser(app, pages)
    _add_queries(app, pages)
    return app


def _add_overviews(app: FastAPI, pages: Pages) -> None:
    @app.get("/")
    def index(run: Annotated[list[str] | None, Query()] = None) -> Response:
        """All runs; those that are chosen side by side."""
        if pages.runs.is_single:
            (name,) = pages.runs.paths()
            return overview(name)
        chosen = [name for name in dict.fromkeys(run or ()) if name in pages.runs.paths()][:6]
        shown = side_by_side({name: pages.open(name).store for name in chosen}) if chosen else None
        return pages.render("runs.html", rows=pages.runs.listed(), chosen=chosen, shown=shown)

    @app.get("/runs/{name}")
    def overview(name: str) -> Response:
        """The report of a run, which follows it."""
        run = pages.open(name)
        if run.may_load.is_set():
            run.store.loaded.wait(LOAD_S / 4)
        return pages.render("overview.html", name=name, **_overview(pages, name, run), sections=SECTIONS)

    @app.get("/runs/{name}/part")
    def part(name: str, version: int = -1) -> Response:
        """The same without its frame; nothing (204) where nothing changed."""
        run = pages.open(name)
        if version == run.version:
            return Response(status_code=204)
        return pages.render("overview_part.html", name=name, **_overview(pages, name, run))


def _overview(pages: Pages, name: str, run: OpenRun) -> dict[str, Any]:
    values = pages.values(name, run)
    ended = values["status"] in ("completed", "stopped", "failed", "dead")
    return {
        "run": values,
        "groups": f"/runs/{quote(name)}/groups",
        "version": run.version,
        "is_loading": not run.store.loaded.is_set(),
        "follows": not ended or not run.store.loaded.is_set(),
        "failure": run.failure,
    }


def _add_browser(app: FastAPI, pages: Pages) -> None:
    @app.get("/runs/{name}/labels")
    def labels(name: str, request: Request, chosen: Annotated[Filter, Query()]) -> Response:
        """Groups with their labels, those first of which the judge is least sure."""
        run = pages.loaded(name)
        matching, rows = listed(run, chosen)
        values = {"name": name, "chosen": chosen, "rows": rows, "matching": matching, "next": chosen.start + PAGE}
        values["is_loading"] = not run.store.loaded.is_set()
        if "rows" in request.query_params or request.headers.get("hx-target") == "rows":
            return pages.render("rows.html", **values)
        if request.headers.get("hx-request") == "true" and request.query_params.get("start"):
            return pages.render("more.html", **values)
        return pages.render("labels.html", **values, choices=choices(run), orders=list(ORDERS))

    @app.get("/runs/{name}/groups/{ordinal}-{attempt}")
    def one_group(name: str, ordinal: int, attempt: int, chosen: Annotated[Filter, Query()]) -> Response:
        """The answers of a group side by side."""
        run = pages.loaded(name)
        found = group(run, ordinal, attempt)
        if found is None:
            raise HTTPException(404, "there is no such group, or its rows are not read yet; try again")
        before, after = around(run, chosen, ordinal, attempt)
        return pages.render("group.html", name=name, chosen=chosen, group=found, before=before, after=after)

    @app.post("/runs/{name}/labels/{label_id:path}")
    def overrule(
        name: str,
        label_id: str,
        verdict: Annotated[str, Form(max_length=20)],
        reason: Annotated[str, Form(max_length=10_000)] = "",
        who: Annotated[str, Form(max_length=200)] = "",
    ) -> Response:
        """Keep a person's label."""
        run = pages.open(name)
        run.may_load.set()
        if not run.store.loaded.wait(LABEL_S):
            return _said("the labels of this run are still being read; save it again in a moment", 503)
        label = label_of(run, label_id)
        if label is None:
            return _said("there is no such label; reload the page", 404)
        who = who.strip() or pages.who or "unnamed"
        try:
            if verdict == "withdrawn" and not has_label(run.store, label_id, who):
                raise InputError(f"{who} has no label here to withdraw")
            add_label(run.store.path, label, verdict=verdict, reason=reason, who=who)
        except (InputError, RunFailedError) as error:
            return _said(str(error), 400)
        run.store.refresh_small()
        run.version += 1
        found = group(run, label["ordinal"], label["attempt"])
        if found is None:
            return _said("the label is kept; the answers of its group are not there", 200)
        return pages.render(
            "human.html", name=name, label=next(one for one in found["labels"] if one["label_id"] == label_id)
        )


def _add_queries(app: FastAPI, pages: Pages) -> None:
    @app.get("/runs/{name}/heldout")
    def heldout(name: str, q: str = "", start: int = 0) -> Response:
        """Held-out answers before and after, the largest change first."""
        run = pages.open(name)
        rows = [
            row
            for row in heldout_pairs(run.store)
            if not q
            or q.lower() in " ".join([*(t["content"] for t in row["prompt"]), row["before"], row["after"]]).lower()
        ]
        shown = rows[max(0, start) : max(0, start) + HELDOUT_PAGE]
        values = {"name": name, "q": q, "rows": shown, "matching": len(rows), "next": max(0, start) + HELDOUT_PAGE}
        return pages.render("heldout.html", **values)

    @app.get("/runs/{name}/sql")
    def query(name: str, q: str = "") -> Response:
        """A person's query."""
        run = pages.loaded(name)
        columns: list[str] = []
        rows: list[tuple[Any, ...]] = []
        error = ""
        if q.strip():
            try:
                columns, rows = sql.ask(run.store, q)
            except InputError as refused:
                error = str(refused)
        cells = [[_cell(value) for value in row] for row in rows]
        return pages.render(
            "sql.html",
            name=name,
            q=q,
            columns=columns,
            rows=cells,
            error=error,
            most=sql.MOST_ROWS,
            tables_rows=[[one, ", ".join(names)] for one, names in sql.columns_of(run.store).items()],
        )

    @app.get("/runs/{name}/gold.jsonl")
    def gold(name: str) -> Response:
        """Pairs with a known better answer from the labels of people."""
        run = pages.loaded(name)
        lines = [json.dumps(pair, ensure_ascii=True) + "\n" for pair in gold_pairs(run.store)]
        return PlainTextResponse(
            "".join(lines),
            headers={"content-disposition": 'attachment; filename="gold.jsonl"'},
            media_type="application/jsonl",
        )


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 500 else f"{text[:500]} …"


def _said(text: str, status: int) -> Response:
    """A sentence in place of a part of the page."""
    return HTMLResponse(f'<p class="warn" role="alert">{html.escape(text)}</p>', status_code=status)
