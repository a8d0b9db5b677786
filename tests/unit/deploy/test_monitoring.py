"""The dashboard and the rules: their form, and that they ask for what a run exports (tests/e2e scrapes)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from solon.telemetry.exports import METRICS
from tests.monitoring import ROOT, RULES, dashboard, dashboard_queries, rule_queries, rules
from tests.promql import OF_COUNTERS, Selector, selectors, tokens, without_variables

EXPORTED = {metric.exported: metric for metric in METRICS.values()}
QUERIES = dashboard_queries() | rule_queries()
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def asked(query: str) -> list[Selector]:
    return selectors(without_variables(query))[0]


# -- the tokenizer ----------------------------------------------------------------------------------------------------


def test_a_query_is_read_into_its_selectors_and_groups():
    rate = 'rate(a_total{run=~"x|y",lane!="}"}[5m] offset 1h)'
    found, grouped = selectors(f"sum by (run, lane) ({rate}) / on (run) group_left (b) (max(c) > 0.5e3)")
    assert found == [
        Selector("a_total", {"run": ("=~", "x|y"), "lane": ("!=", "}")}, "rate"),
        Selector("c", {}, "max"),
    ]
    assert grouped == {"run", "lane", "b"}


def test_an_aggregation_is_found_with_its_grouping_before_and_after():
    assert selectors("max by (run) (a)")[0] == [Selector("a", {}, "max")]
    assert selectors("max(a) by (run)") == ([Selector("a", {}, "max")], {"run"})
    assert selectors("(a and on (run) b) unless c")[0] == [Selector(name) for name in "abc"]
    assert selectors("run_lane:busy:ratio5m{lane='learn'} < 0.3")[0] == [
        Selector("run_lane:busy:ratio5m", {"lane": ("=", "learn")})
    ]


@pytest.mark.parametrize("query", ["sum(a", "a)", "a{b}", 'a{b="c]', "a ; b", "rate(a[5m)"])
def test_what_is_no_query_is_refused(query: str):
    with pytest.raises((ValueError, IndexError)):
        selectors(query)


def test_variables_of_a_dashboard_are_replaced():
    assert without_variables('rate(a{run=~"$run"}[$__rate_interval])') == 'rate(a{run=~".*"}[1m])'
    assert ("duration", "1m") in tokens(without_variables("a[$__interval]"))


# -- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", QUERIES)
def test_queries_ask_for_metrics_with_labels_that_exist(place: str):
    for selector in asked(QUERIES[place]):
        if not selector.metric.startswith("ray_solon_"):
            assert selector.metric in RECORDED or selector.metric.startswith("ray_"), selector
            continue
        metric = EXPORTED[selector.metric]
        assert selector.matchers.keys() <= {"run", *metric.labels}, selector
        for label, (operator, value) in selector.matchers.items():
            if label != "run":
                wanted = value.split("|") if operator == "=~" else [value]
                assert set(wanted) <= set(metric.labels[label]), selector


@pytest.mark.parametrize("place", QUERIES)
def test_rates_are_of_counters_and_counters_are_in_rates(place: str):
    for selector in asked(QUERIES[place]):
        if selector.metric.startswith("ray_solon_"):
            is_counter = EXPORTED[selector.metric].kind == "counter"
            assert is_counter == (selector.function in OF_COUNTERS), selector


@pytest.mark.parametrize("place", QUERIES)
def test_series_of_a_resumed_run_are_joined_by_the_name_of_the_run(place: str):
    """Every process of a run has series of its own (`WorkerId`), so nothing is shown or compared without a sum."""
    query = QUERIES[place]
    for selector in asked(query):
        if selector.metric.startswith("ray_solon_"):
            assert re.search(r"\b(sum|max) by \(run", query), selector


def test_every_metric_is_on_the_dashboard():
    shown = {selector.metric for query in dashboard_queries().values() for selector in asked(query)}
    assert EXPORTED.keys() <= shown, EXPORTED.keys() - shown


# -- the dashboard's form ---------------------------------------------------------------------------------------------


def test_the_dashboard_is_one_that_grafana_11_and_12_read():
    board = dashboard()
    assert board["schemaVersion"] >= 39
    assert board["id"] is None  # or an import would overwrite another dashboard
    assert board["uid"] == "solon"
    datasource, run = board["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == ("datasource", "datasource", "prometheus")
    assert (run["name"], run["type"], run["definition"]) == ("run", "query", "label_values(ray_solon_step, run)")
    assert run["multi"]
    assert run["includeAll"]
    assert run["allValue"] == ".*"


def test_every_panel_has_a_place_of_its_own_and_the_data_source_of_the_variable():
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] in ("row", "stat", "timeseries")
        if panel["type"] == "row":
            continue
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def test_legends_name_only_labels_by_which_the_query_groups():
    for panel in panels():
        for target in panel.get("targets", []):
            _, grouped = selectors(without_variables(target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped, panel["title"]


def test_queries_of_runs_follow_the_variable():
    for place, query in dashboard_queries().items():
        for selector in selectors(query.replace("[$__rate_interval]", "[1m]"))[0]:
            if selector.metric.startswith("ray_solon_"):
                assert selector.matchers["run"] == ("=~", "$run"), place


# -- the rules' form --------------------------------------------------------------------------------------------------


def test_recording_rules_are_named_by_level_metric_and_operation():
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]+:[a-z_0-9]+:[a-z0-9]+", rule["record"])
            assert rule.keys() == {"record", "expr"}


def test_alerts_have_a_severity_a_summary_and_what_to_do():
    names = [rule["alert"] for rule in rules() if "alert" in rule]
    assert len(set(names)) == len(names)
    for rule in rules():
        if "alert" not in rule:
            continue
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Solon[A-Z]\w+", rule["alert"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        _, grouped = selectors(rule["expr"])
        # The labels of a recorded series are in its name: level:metric:operation.
        recorded = [s.metric.partition(":")[0] for s in asked(rule["expr"]) if s.metric in RECORDED]
        levels = {"run": {"run"}, "run_lane": {"run", "lane"}, "node": {"NodeAddress"}}
        assert used <= grouped.union(*(levels[level] for level in recorded)), rule["alert"]


def test_what_is_recorded_is_recorded_before_it_is_used():
    known: set[str] = set()
    for rule in rules():
        used = {selector.metric for selector in asked(rule["expr"])}
        assert {name for name in used if ":" in name} <= known, rule
        known |= {rule["record"]} if "record" in rule else set()


def test_the_pod_monitor_selects_the_pods_of_the_manifests():
    monitor = yaml.safe_load((RULES.parent / "podmonitor.yaml").read_text())
    (pod,) = {str(labels) for labels in _labels_of_pods()}
    assert str(monitor["spec"]["selector"]["matchLabels"]) == pod
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]


def _labels_of_pods() -> list[dict[str, str]]:
    (cluster,) = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / "cluster.yaml").read_text())
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"]["metadata"]["labels"] for group in groups]
