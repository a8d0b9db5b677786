"""`solon label` from the user's side: an endpoint that works, one that does not, and a second start."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from solon.cli.label import run_label
from solon.cli.label_settings import LabelRequest
from solon.cli.main import main
from solon.errors import InputError
from tests.unit.endpoint_server import EndpointServer, answer, error, raw

CONSTITUTION = """
schema: solon.constitution/v1
id: small
version: "1"
principles:
  - id: kind
    pairwise_question: Which answer is kinder?
    pointwise_question: Is the answer kind?
"""

COUNTED = {"prompt_tokens": 500, "completion_tokens": 1}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Builds a request about ten rows; keywords are lines of the endpoint file or fields of the request."""
    (tmp_path / "c.yaml").write_text(CONSTITUTION)
    rows = [{"prompt": f"p{n}", "answers": [f"good {n}", f"bad {n}"]} for n in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(base_url: str, *, endpoint: str = "", limits: str = "", **changes: Any) -> LabelRequest:
        (tmp_path / "judge.toml").write_text(
            f'[endpoint]\nbase_url = "{base_url}"\nmodel = "m"\nbackoff_s = 0.01\n{endpoint}\n[limits]\n{limits}\n'
        )
        settings = {
            "source": tmp_path / "a.jsonl",
            "judge": str(tmp_path / "judge.toml"),
            "constitution": str(tmp_path / "c.yaml"),
            "out": tmp_path / "out",
            "overrides": ["feedback.swap.orders=both"],
        }
        return LabelRequest(**{**settings, **changes})

    return build


def test_an_endpoint_labels_a_file_and_a_second_start_asks_it_nothing(make: Any):
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        summary = run_label(make(server.base_url), as_json=True)
        asked = len(server.seen)
        again = run_label(make(server.base_url), as_json=True)
    assert asked == 20
    assert len(server.seen) == asked
    # It answers A in both orders: only position bias, so every pair is a tie.
    assert summary["labels"]["by_status"] == again["labels"]["by_status"] == {"tie": 10}
    assert summary["quality"]["consistent_share"] == 0


def test_a_refused_key_is_reported_once_and_the_next_start_continues(make: Any):
    with EndpointServer(answer({"A": 0.6, "B": 0.3}), error(401)) as server:
        with pytest.raises(InputError, match="401"):
            run_label(make(server.base_url, endpoint="max_concurrency = 1"), as_json=True)
        server.behave(answer({"A": 0.6, "B": 0.3}))
        summary = run_label(make(server.base_url, endpoint="max_concurrency = 1"), as_json=True)
    assert summary["rows"] == {"total": 10, "done": 10, "left": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("behaviour", "status"), [(error(500), "transport_error"), (raw(b"<html>"), "unparsable")], ids=["500", "garbage"]
)
def test_an_endpoint_that_fails_gives_typed_labels_and_no_preference(make: Any, behaviour: Any, status: str):
    with EndpointServer(behaviour) as server:
        summary = run_label(make(server.base_url, endpoint="max_retries = 0\nbreaker_failures = 1000"), as_json=True)
    assert summary["labels"]["by_status"] == {status: 10}
    assert summary["preferences"] == 0


def test_a_spend_cap_of_zero_asks_nothing_and_loses_nothing(make: Any):
    prices = "usd_per_million_input = 1.0"
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        summary = run_label(make(server.base_url, endpoint=prices, limits="max_usd = 0.0"), as_json=True)
        assert server.seen == []
        assert summary["status"] == "budget"
        assert summary["rows"]["left"] == 10
        summary = run_label(make(server.base_url, endpoint=prices, limits="max_usd = 1.0"), as_json=True)
    assert summary["status"] == "completed"
    assert summary["cost"]["usd"] > 0


def test_a_spend_limit_per_start_is_never_exceeded_and_applies_again_to_the_next_start(make: Any):
    prices = "usd_per_million_input = 1000.0\nusd_per_million_output = 1000.0"
    with EndpointServer(answer({"A": 0.6, "B": 0.3}, usage=COUNTED)) as server:
        whole = run_label(make(server.base_url, endpoint=prices), as_json=True)["cost"]["usd"]
    with EndpointServer(answer({"A": 0.6, "B": 0.3}, usage=COUNTED)) as server:
        request = make(server.base_url, endpoint=prices, max_usd=whole * 0.6)
        out = request.out.with_name("limited")
        first = run_label(dataclasses.replace(request, out=out), as_json=True)
        assert first["status"] == "budget"
        assert 0 < first["this_start"]["usd"] <= whole * 0.6
        second = run_label(dataclasses.replace(request, out=out, max_usd=whole), as_json=True)
    assert second["status"] == "completed"


def test_a_spend_limit_needs_prices(make: Any):
    with pytest.raises(InputError, match="the endpoint has no prices"):
        run_label(make("http://127.0.0.1:1/v1", max_usd=1.0), as_json=True)


def test_a_run_that_labels_nothing_says_why_and_exits_1(make: Any, monkeypatch: Any, capsys: Any):
    with EndpointServer(raw(b"<html>")) as server:
        request = make(server.base_url, endpoint="max_retries = 0\nbreaker_failures = 1000")
        arguments = [str(request.source), "--judge", request.judge, "--constitution", request.constitution]
        monkeypatch.setattr(sys, "argv", ["solon", "label", *arguments, "--out", str(request.out)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "nothing was labelled: 10 of 10 labels are unparsable" in told.err
    assert "%" not in told.out  # no table of nothing


def test_a_directory_holds_labels_of_one_judge_and_one_constitution(make: Any, tmp_path: Path):
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        request = make(server.base_url)
        run_label(request, as_json=True)
        (tmp_path / "c.yaml").write_text(CONSTITUTION.replace("kinder", "nicer"))
        with pytest.raises(InputError, match=r"made in another way: constitution_hash was .*, is "):
            run_label(request, as_json=True)
        (tmp_path / "c.yaml").write_text(CONSTITUTION)
        other = [*request.overrides, "feedback.min_mass=0.3", "seed=7"]
        with pytest.raises(
            InputError, match=r"feedback\.min_mass was [\d.]+, is 0\.3; seed was 0, is 7; set them back"
        ):
            run_label(make(server.base_url, overrides=other), as_json=True)
        with pytest.raises(InputError, match=r"did you mean `orders`"):
            run_label(make(server.base_url, overrides=["feedback.swap.order=both"]), as_json=True)


def test_a_directory_of_a_version_with_fewer_settings_continues_with_their_defaults(make: Any, tmp_path: Path):
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        request = make(server.base_url)
        run_label(request, as_json=True)
        path = request.out / "config.json"
        config = json.loads(path.read_text())
        del config["settings"]["feedback"]["swap"]["contradicted"]
        path.write_text(json.dumps(config))
        assert run_label(request, as_json=True)["status"] == "completed"
        with pytest.raises(InputError, match=r"feedback\.swap\.contradicted was 'drop', is 'keep'"):
            run_label(
                make(server.base_url, overrides=[*request.overrides, "feedback.swap.contradicted=keep"]), as_json=True
            )


def test_the_help_names_the_formats_of_rows_and_that_an_endpoint_may_judge(monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(sys, "argv", ["solon", "label", "--help"])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main()
    said = " ".join(capsys.readouterr().out.split())
    for word in ("JSONL", "CSV", "Parquet", "`answers`", "`chosen`", ".toml"):
        assert word in said


def test_a_judge_that_always_favours_one_position_causes_a_warning(make: Any, capsys: Any):
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        summary = run_label(make(server.base_url), as_json=False)
    assert len(summary["warnings"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "warning: the judge decides by position: on 100% of 10 comparisons" in told


def test_rows_without_answers_need_a_policy(make: Any, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "hi"}\n{"prompt": "ho"}\n')
    with pytest.raises(InputError, match=r"none of the 2 rows has answers.*--policy"):
        run_label(make("http://127.0.0.1:1/v1"), as_json=True)


def test_a_key_in_the_wrong_field_is_not_shown(make: Any):
    with pytest.raises(InputError) as caught:
        run_label(make("http://127.0.0.1:1/v1", endpoint='api_key = "sk-abcdefghijklmnopqrstuvwxyz"'), as_json=True)
    assert "sk-abc" not in str(caught.value)


def test_a_selection_of_rows_is_labelled_with_weights_and_propensities(make: Any, tmp_path: Path):
    rows = [{"prompt": f"p{n}", "answers": [f"good {n}", f"bad {n}"]} for n in range(120)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["select.rate=0.25", "select.policy=near_tie", f"select.proxy={tmp_path / 'judge.toml'}"]
    with EndpointServer(answer({"A": 0.6, "B": 0.3})) as server:
        summary = run_label(make(server.base_url, overrides=overrides), as_json=True)
        asked = len(server.seen)
        run_label(make(server.base_url, overrides=overrides), as_json=True)
        assert len(server.seen) == asked
    drawn = [json.loads(line) for line in (tmp_path / "out" / "selection.jsonl").read_text().splitlines()]
    assert len(drawn) == 120
    assert 12 <= summary["rows"]["total"] == sum(one["selected"] for one in drawn) <= 50
    assert all(one["propensity"] == pytest.approx(0.25) for one in drawn)  # all alike, so all as likely
    with pytest.raises(InputError, match=r"needs select\.proxy"):
        run_label(make("http://127.0.0.1:1/v1", overrides=["select.rate=0.5", "select.policy=near_tie"]), as_json=True)
