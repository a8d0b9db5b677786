"""What Prometheus sees of a run: its series, and whether the dashboard and the rules ask for nothing else."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from solon.telemetry.exports import METRICS
from tests.e2e.standin_runs import Child, lines, standin_command, start
from tests.monitoring import dashboard_queries, rule_queries
from tests.prometheus import Sample, read_samples
from tests.promql import selectors, without_variables

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

DISCOVERY = "prom_metrics_service_discovery.json"
OF_RAY = {
    "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId",
    "otel_scope_name", "otel_scope_schema_url", "otel_scope_version",
}  # fmt: skip
"""Labels that Ray adds to every series."""
RECORDED = {name for name in rule_queries() if ":" in name}
ASKED_FOR = {
    selector.metric
    for query in (dashboard_queries() | rule_queries()).values()
    for selector in selectors(without_variables(query))[0]
} - RECORDED


@dataclass(frozen=True)
class Scrape:
    """One scrape of all targets that Ray names, and what the run had on record right before and after."""

    samples: list[Sample]
    steps: tuple[int, int]
    job: dict[str, Any]
    directory: Path

    def of(self, name: str, **labels: str) -> list[Sample]:
        return [s for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    @property
    def solon(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.name.startswith("ray_solon_")]


def scrape(child: Child) -> Scrape:
    """As Prometheus does: from the file that Ray writes for its service discovery."""
    (job,) = json.loads(next(path for path in child.temporary.rglob(DISCOVERY)).read_text())
    before = len(lines(child.directory / "metrics.jsonl"))
    samples = []
    for target in job["targets"]:
        with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
            samples += read_samples(answer.read().decode())
    return Scrape(samples, (before, len(lines(child.directory / "metrics.jsonl"))), job, child.directory)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    folder = tmp_path_factory.mktemp("metrics")
    temporary = Path(tempfile.mkdtemp(prefix="m", dir="/tmp"))  # a socket below it needs a short path
    command = standin_command("observed", "--steps", "2000", "--set", "rollout.max_actors=2")
    with start(command, folder, temporary, "observed", RAY_metrics_report_interval_ms="5000") as child:
        child.wait_for_step(5)
        # Agents forget a gauge after two such intervals, and report their nodes every five seconds.
        deadline, found = time.monotonic() + 60, scrape(child)
        while not found.names >= ASKED_FOR and time.monotonic() < deadline:  # the tests say what is missing
            time.sleep(1)
            found = scrape(child)
        child.process.send_signal(signal.SIGINT)
        assert child.end() == 0, child.output[-2000:]
        child.wait_until_gone()
    shutil.rmtree(temporary)
    return found


def test_every_metric_of_the_table_is_exported_with_its_labels_and_no_other_is(scraped: Scrape):
    table = {metric.exported: metric for metric in METRICS.values()}
    assert {sample.name for sample in scraped.solon} == table.keys()
    for sample in scraped.solon:
        metric = table[sample.name]
        assert sample.labels.keys() - OF_RAY == {"run", *metric.labels}, sample
        assert sample.labels["run"] == scraped.directory.name
        for label, values in metric.labels.items():
            assert sample.labels[label] in values, sample
        assert sample.type == metric.kind, sample


def test_there_is_one_series_for_each_combination_of_labels_however_long_the_run_is(scraped: Scrape):
    for metric in METRICS.values():
        found = scraped.of(metric.exported)
        assert len(found) <= len(list(metric.series())), metric.name
        if metric.kind == "counter":  # all of them exist from the start, so that a rate sees the first increase
            assert len(found) == len(list(metric.series())), metric.name


def test_figures_are_those_of_the_records(scraped: Scrape):
    (trained,) = scraped.of("ray_solon_groups_total", stage="trained")
    assert 0 < trained.value <= 4 * scraped.steps[1]
    assert trained.value % 4 == 0
    (step,) = scraped.of("ray_solon_step")
    assert 0 < step.value <= scraped.steps[1]
    (planned,) = scraped.of("ray_solon_steps_planned")
    assert planned.value == 2000
    assert [s.value for s in scraped.of("ray_solon_workers_bound", lane="generate", bound="most")] == [2]
    assert [s.value for s in scraped.of("ray_solon_kv_cache_use_ratio")] == [0.5]
    for lane in ("generate", "label", "learn"):
        assert [s.value >= 1 for s in scraped.of("ray_solon_workers", lane=lane, state="up")] == [True]
        assert [s.value > 0 for s in scraped.of("ray_solon_busy_seconds_total", lane=lane)] == [True]


@pytest.mark.parametrize("queries", [dashboard_queries(), rule_queries()], ids=["dashboard", "rules"])
def test_queries_name_series_that_a_scrape_has(scraped: Scrape, queries: dict[str, str]):
    for place, query in queries.items():
        found, grouped = selectors(without_variables(query))
        assert found, place
        for selector in found:
            if selector.metric in RECORDED:
                continue
            samples = scraped.of(selector.metric)
            assert samples, f"{place}: no series {selector.metric}"
            labels = set[str]().union(*(sample.labels for sample in samples))
            assert selector.matchers.keys() <= labels, f"{place}: {selector.metric} has labels {sorted(labels)}"
        labels = set[str]().union(*(s.labels for selector in found for s in scraped.of(selector.metric)))
        if not any(selector.metric in RECORDED for selector in found):
            assert grouped <= labels, f"{place}: grouped by {sorted(grouped - labels)}"


def test_ray_names_the_targets_of_a_scrape(scraped: Scrape):
    assert scraped.job["labels"] == {"job": "ray"}
    assert len(scraped.job["targets"]) >= 2
    assert {sample.labels["SessionName"] for sample in scraped.solon} == {
        sample.labels["SessionName"] for sample in scraped.samples if "SessionName" in sample.labels
    }


def test_every_group_of_the_run_has_one_line_from_admission_to_commit(scraped: Scrape):
    groups = lines(scraped.directory / "groups.jsonl")
    trained = {line["ordinal"]: line["step"] for line in groups if line["outcome"] == "trained"}
    assert trained == {
        ordinal: step["step"]
        for step in lines(scraped.directory / "metrics.jsonl")
        for ordinal in step["batch/ordinals"]
    }
    assert len(groups) == len(trained)
    for line in groups:
        times = [line[key] for key in ("admitted", "granted", "generated", "taken", "labelled", "time")]
        assert times == sorted(times), line
        assert line["engine"].startswith("rollout-")
        assert line["judge"].startswith("judge-")


def test_scraping_needs_no_port_that_others_can_reach(scraped: Scrape):
    assert {target.rpartition(":")[0] for target in scraped.job["targets"]} == {"127.0.0.1"}
