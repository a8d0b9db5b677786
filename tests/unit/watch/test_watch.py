"""The live page: who may see it, what it shows, and what a person's label changes."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from serve_apps.watch.app import build_watch
from serve_apps.watch.runs import Runs
from solon.errors import InputError
from tests.unit.attacks import ALL
from tests.unit.report.run_folders import label, make_run, part, rollout

TOKEN, BASE = "right-token", "http://127.0.0.1:8420"
WRITES = {"hx-request": "true", "origin": BASE}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs" / "two", status="stopped")
    return tmp_path / "runs"


@pytest.fixture
def runs(place: Path) -> Iterator[Runs]:
    found = Runs(place)
    yield found
    found.close()


def client(runs: Runs, *, signed_in: bool = True) -> TestClient:
    app = build_watch(runs, token=TOKEN, port=8420, who="ada")
    found = TestClient(app, base_url=BASE, raise_server_exceptions=False, follow_redirects=False)
    if signed_in:
        found.cookies.set("solon_watch_8420", TOKEN)
    return found


def loaded(runs: Runs, name: str = "one") -> TestClient:
    """A client of a run whose labels are read."""
    run = runs.get(name)
    assert run is not None
    assert run.store.loaded.wait(20)
    return client(runs)


# -- access ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/runs/one", "/runs/one/labels", "/runs/one/sql?q=select+1", "/assets/page.js"])
def test_without_the_token_nothing_is_shown(runs: Runs, path: str) -> None:
    reply = client(runs, signed_in=False).get(path)
    assert reply.status_code == 403
    assert "polite" not in reply.text


def test_the_token_of_the_address_becomes_a_cookie_and_leaves_the_address(runs: Runs) -> None:
    reply = client(runs, signed_in=False).get(f"/runs/one?token={TOKEN}&q=x")
    assert (reply.status_code, reply.headers["location"]) == (303, "/runs/one?q=x")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


@pytest.mark.parametrize("token", ["wrong", "", "right-toke", "é"])
def test_a_wrong_token_opens_nothing(runs: Runs, token: str) -> None:
    assert client(runs, signed_in=False).get("/", params={"token": token}).status_code == 403


@pytest.mark.parametrize("host", ["a.example", "127.0.0.1.a.example:8420", "localhost.a.example"])
def test_other_names_of_this_host_are_refused(runs: Runs, host: str) -> None:
    assert client(runs).get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [{}, {"hx-request": "true"}, {"hx-request": "true", "origin": "http://a.example"}, {"origin": BASE}],
)
def test_a_foreign_page_writes_no_label(runs: Runs, place: Path, headers: dict[str, str]) -> None:
    reply = loaded(runs).post("/runs/one/labels/0x0polite", data={"verdict": "no"}, headers=headers)
    assert reply.status_code == 403
    assert not (place / "one" / "human-labels.jsonl").exists()


def test_pages_name_what_a_browser_may_load(runs: Runs) -> None:
    headers = loaded(runs).get("/runs/one").headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("others", ['x={"a":1}; ', 'foo="bar; ', "x[y]=1; a@b=2; ", "solon_watch_8420=old; "])
def test_cookies_of_other_programs_on_this_host_do_no_harm(runs: Runs, others: str) -> None:
    web = client(runs, signed_in=False)
    assert web.get("/", headers={"cookie": f"{others}solon_watch_8420={TOKEN}"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "location"),
    [
        (f"/?run=a&run=b&token={TOKEN}", "/?run=a&run=b"),
        (f"/runs/a%3Fb%23c?token={TOKEN}", "/runs/a%3Fb%23c"),
        (f"/runs/per%25cent?q=x&token={TOKEN}", "/runs/per%25cent?q=x"),
    ],
)
def test_the_address_stays_as_it_was_without_the_token(runs: Runs, path: str, location: str) -> None:
    assert client(runs, signed_in=False).get(path).headers["location"] == location


async def test_the_token_leads_to_no_other_host(runs: Runs) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "//a.example/",
        "raw_path": b"//a.example/",
        "headers": [],
        "query_string": f"token={TOKEN}".encode(),
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
    }
    scope["headers"] = [(b"host", b"LOCALHOST:8420")]
    await build_watch(runs, token=TOKEN, port=8420)(scope, receive, send)
    assert dict(sent[0]["headers"])[b"location"] == b"/a.example/"


# -- pages -----------------------------------------------------------------------------------------------------------


def test_all_runs_are_listed_and_chosen_ones_stand_side_by_side(runs: Runs) -> None:
    page = loaded(runs).get("/?run=one&run=two&run=none").text
    assert 'href="/runs/one"' in page
    assert "Held-out scores" in page
    assert page.count("chart-reward") == 2  # the figure and its data


def test_a_part_of_the_page_is_sent_again_only_when_the_run_changed(runs: Runs, place: Path) -> None:
    web = loaded(runs)
    run = runs.get("one")
    assert run is not None
    version = run.version
    assert web.get(f"/runs/one/part?version={version}").status_code == 204
    part(place / "one", "labels", [label(9, 0, "polite")], number=1)
    (place / "one" / "live.json").write_text("{}")
    deadline = time.monotonic() + 20
    while run.version == version and time.monotonic() < deadline:
        run.want()
        time.sleep(0.05)
    reply = web.get(f"/runs/one/part?version={version}")
    assert reply.status_code == 200
    assert "33" in reply.text


def test_the_browser_searches_and_filters(runs: Runs) -> None:
    web = loaded(runs)
    assert "8 groups" in web.get("/runs/one/labels").text
    assert "2 groups" in web.get("/runs/one/labels?step=1").text
    assert "0 groups" in web.get("/runs/one/labels?q=nowhere").text
    assert "4 groups" in web.get("/runs/one/labels?q=GLADLY").text
    assert "0 groups" in web.get("/runs/one/labels?status=timeout").text
    assert web.get("/runs/one/labels?step=x").status_code == 422
    assert web.get("/runs/one/labels?start=-1").status_code == 422


def test_other_letters_are_found_in_prompts(runs: Runs, place: Path) -> None:
    row = rollout(90, 0, "x", step=1) | {"prompt": json.dumps([{"role": "user", "content": "größe"}])}
    part(place / "one", "rollouts", [row], number=5)
    assert "1 group<" in loaded(runs).get("/runs/one/labels?q=größe").text


def test_groups_on_which_the_orders_disagree_come_first(runs: Runs, place: Path) -> None:
    changed = label(3, 0, "polite") | {
        "task": "pairwise",
        "rollouts": [0, 1],
        "label_id": "z",
        "consistent": False,
        "position_offset": 2.0,
    }
    part(place / "one", "labels", [changed], number=1)
    web = loaded(runs)
    first = re.search(r"/groups/(\d+)-", web.get("/runs/one/labels").text)
    assert first is not None
    assert first.group(1) == "3"
    page = web.get("/runs/one/groups/3-0").text
    assert "+3.500 shown first, -0.500 shown second" in page


def test_a_long_list_comes_in_pages(tmp_path: Path) -> None:
    make_run(tmp_path / "r" / "one", steps=60)
    runs = Runs(tmp_path / "r")
    web = loaded(runs)
    page = web.get("/runs/one/labels").text
    more = re.search(r'hx-get="([^"]*start=50[^"]*)"', page)
    assert more is not None
    rows = web.get(more.group(1).replace("&amp;", "&"), headers={"hx-request": "true"}).text
    assert rows.count('class="row"') == 51
    assert "<html" not in rows
    runs.close()


@pytest.mark.parametrize(
    "path",
    [
        "/runs/none",
        "/runs/%2e%2e",
        "/runs/one/groups/999-0",
        "/runs/one/groups/x-y",
        "/assets/..%2fx",
        "/x",
        "/runs/one/groups/99999999999999999999999-0",
    ],
)
def test_what_is_not_there_is_said_plainly(runs: Runs, path: str) -> None:
    reply = loaded(runs).get(path)
    assert reply.status_code in (404, 422)
    assert "Traceback" not in reply.text


def test_hostile_texts_stay_text_on_every_page(tmp_path: Path) -> None:
    texts = [text for text in ALL if not re.search("[\ud800-\udfff]", text)]
    make_run(tmp_path / "r" / "one", texts=texts, steps=20)
    runs = Runs(tmp_path / "r")
    web = loaded(runs)
    groups = [f"/runs/one/groups/{number}-0" for number in range(40)]
    pages = ["/", "/runs/one", "/runs/one/heldout", "/runs/one/sql?q=select+text+from+rollouts", "/runs/one/labels"]
    for path in (*pages, *groups, *(f"/runs/one/labels?q={text}" for text in ("<script>", "{{7*7}}", "%00"))):
        shown = web.get(path).text
        assert "<script>alert" not in shown
        assert "<img" not in shown
        assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b\ufeff]", shown), path
    runs.close()


# -- labels of people ------------------------------------------------------------------------------------------------


def test_a_persons_label_is_appended_and_shown(runs: Runs, place: Path) -> None:
    web, path = loaded(runs), "/runs/one/labels/0x0polite"
    assert web.post(path, data={"verdict": "no", "reason": "<b>rude</b>"}, headers=WRITES).status_code == 200
    assert web.post(path, data={"verdict": "yes", "who": "bob"}, headers=WRITES).status_code == 200
    first, second = map(json.loads, (place / "one" / "human-labels.jsonl").read_text().splitlines())
    assert (first["parent_label_id"], first["verdict"], first["margin"], first["who"]) == (
        "0x0polite",
        "no",
        -6.0,
        "ada",
    )
    assert (second["source"], second["who"]) == ("human", "bob")
    page = web.get("/runs/one/groups/0-0").text
    assert "&lt;b&gt;rude&lt;/b&gt;" in page
    assert "1 group<" in web.get("/runs/one/labels?status=human").text


def test_the_judges_labels_are_never_changed(runs: Runs, place: Path) -> None:
    before = pq.read_table(place / "one" / "labels").to_pylist()
    loaded(runs).post("/runs/one/labels/0x0polite", data={"verdict": "no"}, headers=WRITES)
    assert pq.read_table(place / "one" / "labels").to_pylist() == before


@pytest.mark.parametrize("data", [{"verdict": "first"}, {"verdict": "x"}, {"verdict": "no", "reason": "x" * 5000}])
def test_another_verdict_is_refused_with_the_right_ones(runs: Runs, place: Path, data: dict[str, str]) -> None:
    reply = loaded(runs).post("/runs/one/labels/0x0polite", data=data, headers=WRITES)
    assert reply.status_code == 400
    assert "expected" in reply.text
    assert not (place / "one" / "human-labels.jsonl").exists()


def test_a_label_that_cannot_be_written_is_said_to_be_lost(runs: Runs, place: Path) -> None:
    web = loaded(runs)
    (place / "one" / "human-labels.jsonl").mkdir()
    reply = web.post("/runs/one/labels/0x0polite", data={"verdict": "no"}, headers=WRITES)
    assert reply.status_code == 400
    assert "the label is not kept" in reply.text


def test_labels_of_people_become_gold_pairs(runs: Runs) -> None:
    web = loaded(runs)
    for name, verdict in (("0x0polite", "no"), ("0x1polite", "yes"), ("1x0polite", "yes"), ("1x1polite", "flag")):
        web.post(f"/runs/one/labels/{name}", data={"verdict": verdict}, headers=WRITES)
    (pair,) = [json.loads(line) for line in web.get("/runs/one/gold.jsonl").text.splitlines()]
    assert (pair["a"], pair["b"], pair["expect"], pair["principle"]) == ("no", "good day", "a", "polite")
    assert pair["prompt"][0]["role"] == "user"


def test_a_withdrawn_label_is_no_gold(runs: Runs) -> None:
    web = loaded(runs)
    for name, verdict in (("0x0polite", "no"), ("0x1polite", "yes"), ("0x1polite", "withdrawn")):
        web.post(f"/runs/one/labels/{name}", data={"verdict": verdict}, headers=WRITES)
    assert web.get("/runs/one/gold.jsonl").text == ""


def test_a_label_after_a_torn_line_is_whole(runs: Runs, place: Path) -> None:
    web = loaded(runs)
    (place / "one" / "human-labels.jsonl").write_text('{"label_id": "torn')
    assert web.post("/runs/one/labels/0x0polite", data={"verdict": "no"}, headers=WRITES).status_code == 200
    assert json.loads((place / "one" / "human-labels.jsonl").read_text().splitlines()[1])["verdict"] == "no"
    assert "<b>no</b> by ada" in web.get("/runs/one/groups/0-0").text


def test_a_label_is_kept_in_a_run_that_was_not_open(tmp_path: Path) -> None:
    for number in range(9):
        make_run(tmp_path / str(number), steps=1)
    runs = Runs(tmp_path)
    web = client(runs)
    for number in [*range(9), *range(9)]:
        reply = web.post(f"/runs/{number}/labels/0x0polite", data={"verdict": "no"}, headers=WRITES)
        assert reply.status_code == 200, reply.text
    runs.close()


def test_a_person_withdraws_no_label_of_another(runs: Runs) -> None:
    web, path = loaded(runs), "/runs/one/labels/0x0polite"
    web.post(path, data={"verdict": "no", "who": "bob"}, headers=WRITES)
    reply = web.post(path, data={"verdict": "withdrawn"}, headers=WRITES)
    assert reply.status_code == 400
    assert "ada has no label here" in reply.text


def test_a_replaced_label_is_marked(runs: Runs) -> None:
    web, path = loaded(runs), "/runs/one/labels/0x0polite"
    for verdict in ("no", "yes"):
        reply = web.post(path, data={"verdict": verdict}, headers=WRITES)
    assert reply.text.count("replaced") == 1


def test_a_link_in_place_of_the_file_of_labels_is_not_followed(runs: Runs, place: Path, tmp_path: Path) -> None:
    web = loaded(runs)
    (tmp_path / "outside").write_text("")
    (place / "one" / "human-labels.jsonl").symlink_to(tmp_path / "outside")
    assert web.post("/runs/one/labels/0x0polite", data={"verdict": "no"}, headers=WRITES).status_code == 400
    assert (tmp_path / "outside").read_text() == ""


def test_one_run_that_cannot_be_read_hides_no_other(runs: Runs, place: Path) -> None:
    bad = make_run(place / "bad")
    (bad / "summary.json").write_text(json.dumps({"status": "completed", "eval": [1], "groups": {"admitted": 10**30}}))
    os.mkfifo(bad / "heldout-after.json.fifo")
    (bad / "events.jsonl").unlink()
    os.mkfifo(bad / "events.jsonl")
    reply = client(runs).get("/")
    assert reply.status_code == 200
    assert 'href="/runs/one"' in reply.text
    assert loaded(runs, "bad").get("/runs/bad").status_code == 200


def test_requests_for_many_runs_at_once_are_all_answered(tmp_path: Path) -> None:
    for number in range(8):
        make_run(tmp_path / str(number), steps=1)
    runs = Runs(tmp_path)
    web = client(runs)
    with ThreadPoolExecutor(8) as pool:
        paths = [f"/runs/{number % 8}/labels" for number in range(64)]
        found = list(pool.map(lambda path: web.get(path).status_code, paths))
    assert set(found) == {200}
    runs.close()


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        Runs(tmp_path)
    with pytest.raises(InputError, match="there is no directory"):
        Runs(tmp_path / "none")


def test_tables_of_runs_that_are_not_looked_at_are_freed(tmp_path: Path) -> None:
    for number in range(9):
        make_run(tmp_path / str(number), steps=1)
    runs = Runs(tmp_path)
    for number in range(9):
        runs.get(str(number))
    assert len(runs._open) == 6
    runs.close()


def test_the_page_of_a_group_says_who_worked_on_it_and_how_long(runs: Runs, place: Path) -> None:
    line = {
        "time": 9.0, "ordinal": 3, "attempt": 0, "outcome": "trained", "granted": 1.0, "generated": 3.5,
        "labelled": 4.0, "engine": "rollout-<0>", "judge": "judge-1",
    }  # fmt: skip
    (place / "one" / "groups.jsonl").write_text(json.dumps(line) + "\n")
    text = loaded(runs).get("/runs/one/groups/3-0").text
    assert (
        "generated by rollout-&lt;0&gt; in 2.50 s, labelled by judge-1 0.50 s later, trained 5.00 s after that" in text
    )
    assert "generated by" not in loaded(runs).get("/runs/one/groups/2-0").text
