"""Whether a cluster can ever hold a run: against nodes that exist and node types that may come."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config.labels import check_labels, matches
from cluster.config.run_file import RunFile
from cluster.placement.node_types import extract, node_types
from cluster.placement.placement import Node, NodeType, Supply, check_cluster, demands_of, refusal, table
from solon.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
HEAD = Node(resources={"CPU": 0.0}, type="head", is_head=True)
POOL = {"solon.io/pool": "judge"}


def run_of(**sections: dict[str, Any]) -> RunFile:
    """One rollout engine, one judge and a learner of 1 CPU each, unless stated otherwise."""
    raw = {"policy": "a/b", "judge": "a/b", "prompts": "p", "constitution": "c", **sections}
    return RunFile.parse(raw, source="test")


def kind(name: str, at_most: float = 1, labels: dict[str, str] | None = None, **resources: float) -> NodeType:
    return NodeType(name=name, resources=resources, labels=labels or {}, at_most=at_most)


def growing(*types: NodeType, nodes: tuple[Node, ...] = (), at_most: float = math.inf) -> Supply:
    """A head without CPUs, and the possible nodes."""
    return Supply(nodes=[HEAD, *nodes], types=types, at_most=at_most)


def refused(run: RunFile, supply: Supply) -> str:
    with pytest.raises(InputError) as caught:
        check_cluster(run, supply)
    assert "\n" not in str(caught.value)
    return "\n".join((str(caught.value), *caught.value.__notes__))


# -- demands that are waited for -----------------------------------------------------------------------------------


def test_a_cluster_without_worker_nodes_holds_what_its_node_types_can_become():
    run = run_of(learn={"num_gpus": 1})
    check_cluster(run, growing(kind("learner", CPU=8, GPU=1), kind("engine", at_most=2, CPU=1)))
    assert "the cluster can have 0" in refused(run, growing(kind("engine", at_most=9, CPU=8)))
    assert "the cluster has 0" in refused(run, growing())


def test_nodes_that_exist_count_against_the_most_that_there_may_be():
    there = Node(resources={"CPU": 1.0}, type="engine")
    check_cluster(run_of(), growing(kind("engine", at_most=3, CPU=1), nodes=(there,)))
    assert "can have 2" in refused(run_of(), growing(kind("engine", at_most=2, CPU=1), nodes=(there,)))


def test_the_most_nodes_of_the_cluster_hold_for_all_types_together():
    types = kind("small", at_most=8, CPU=1), kind("large", at_most=8, CPU=2)
    check_cluster(run_of(), growing(*types, at_most=2))  # two large ones
    assert "needs 3 CPU(s)" in refused(run_of(), growing(*types, at_most=1))


def test_an_unknown_cluster_is_waited_for():
    run = run_of(learn={"num_cpus": 99})
    check_cluster(run, Supply(nodes=[HEAD], types=None))
    assert "node types of this cluster are not known" in table(demands_of(run), Supply(nodes=[HEAD], types=None))


def test_a_node_type_whose_labels_are_not_known_may_have_any():
    run = run_of(judging={"labels": POOL})
    check_cluster(run, growing(NodeType(name="any", resources={"CPU": 8}, labels=None, at_most=1)))


def test_actors_without_requests_fit_on_any_node():
    nothing = {"num_cpus": 0}
    check_cluster(run_of(rollout=nothing, judging=nothing, learn=nothing), growing())


# -- impossible demands --------------------------------------------------------------------------------------------


def test_an_actor_larger_than_every_node_is_refused_although_the_total_suffices():
    run = run_of(learn={"num_cpus": 6})
    message = refused(run, growing(kind("engine", at_most=4, CPU=4)))
    assert "1 x learn asks for 6 CPU each, the cluster can have room for 0 of them" in message
    assert "raise max_workers" in message
    assert "join a larger cluster" in refused(run, Supply(nodes=[Node(resources={"CPU": 4.0})] * 4))


def test_actors_that_need_a_node_each_are_counted_against_the_nodes():
    run = run_of(judging={"num_cpus": 3, "num_actors": 3})
    types = kind("judges", at_most=2, CPU=5), kind("others", at_most=2, CPU=2)
    assert "3 x judging asks for 3 CPU each, the cluster can have room for 2 of them" in refused(run, growing(*types))


def test_a_fraction_of_a_gpu_lies_on_one_gpu():
    def judges(count: int, share: float) -> RunFile:
        return run_of(judging={"num_gpus": share, "num_actors": count})

    two = Supply(nodes=[Node(resources={"CPU": 99.0, "GPU": 2.0})])
    check_cluster(judges(2, 0.6), two)
    message = refused(judges(3, 0.6), two)
    assert "3 x judging asks for 1 CPU, 0.6 GPU each, the cluster has room for 2 of them" in message
    check_cluster(judges(6, 1 / 3), two)
    check_cluster(judges(4, 0.4), two)
    assert "room for 4 of them" in refused(judges(5, 0.4), two)
    check_cluster(judges(20, 0.1), two)
    check_cluster(judges(2, 1.0), two)


def test_ranks_on_several_nodes_need_a_node_each_and_the_message_names_the_key():
    """Two nodes with room for all four ranks each hold a learner of two nodes; one, however large, does not."""
    run = run_of(
        learn={"num_ranks": 4, "num_nodes": 2, "labels": POOL}, rollout={"num_cpus": 0}, judging={"num_cpus": 0}
    )
    parts = [demand for demand in demands_of(run) if demand.section == "learn"]
    assert [(demand.cpus, demand.num_ranks, demand.num_nodes) for demand in parts] == [(2.0, 2, 2)] * 2
    check_cluster(run, growing(kind("learner", at_most=2, labels=POOL, CPU=2)))
    said = refused(run, growing(kind("learner", at_most=1, labels=POOL, CPU=64)))
    assert "2 x learn asks for 2 CPU, solon.io/pool=judge each, the cluster can have room for 1 of them" in said
    assert "num_ranks, or num_nodes: each of them is on a node of its own" in said
    there = Node(resources={"CPU": 64.0}, labels=POOL)
    check_cluster(run, Supply(nodes=[there, there]))
    assert "the cluster has room for 1 of them" in refused(run, Supply(nodes=[there]))
    assert "has room for 0 of them" in refused(run, Supply(nodes=[Node(resources={"CPU": 1.0}, labels=POOL)] * 4))


def test_the_table_says_how_many_nodes_there_may_be_of_all_types_together():
    types = kind("small", at_most=8, CPU=1), kind("large", at_most=8, CPU=2)
    rows = [line.split() for line in refused(run_of(), growing(*types, at_most=1)).splitlines()]
    assert ["all", "together", "1", "2", "the", "most", "that", "the", "cluster", "may", "have"] in rows  # the head too
    assert not any(
        row[:2] == ["all", "together"]
        for row in (line.split() for line in table(demands_of(run_of()), growing(*types)).splitlines())
    )


def test_a_selector_that_no_node_type_has_is_refused_and_the_table_says_who_fits_where():
    run = run_of(judging={"labels": POOL, "num_actors": 2})
    message = refused(run, growing(kind("rollout", at_most=8, labels={"solon.io/pool": "rollout"}, CPU=8, GPU=1)))
    assert "2 x judging asks for 1 CPU, solon.io/pool=judge each" in message
    assert "or change labels in [judging]" in message
    rows = [line.split() for line in message.splitlines()]
    assert ["2", "x", "judging", "1", "CPU,", "solon.io/pool=judge", "nowhere"] in rows
    assert ["1", "x", "rollout", "1", "CPU", "rollout"] in rows
    assert ["rollout", "0", "8", "8", "CPU,", "1", "GPU,", "solon.io/pool=rollout"] in rows
    assert ["head", "1", "1", "nothing", "for", "actors"] in rows


def test_pools_that_share_the_only_nodes_that_fit_them_are_counted_together():
    run = run_of(judging={"labels": POOL}, learn={"labels": POOL})
    types = kind("judge", labels=POOL, CPU=1), kind("other", at_most=9, CPU=9)
    message = refused(run, growing(*types))
    assert "needs 2 CPU(s) (1 x judging 1, learn 1), the nodes that fit (judge) can have 1" in message


def test_refused_demands_have_no_placement_and_demands_that_fit_are_never_refused():
    """Every cluster of up to three nodes against every choice of three actors: brute force finds a placement for every
    wrong refusal."""
    sizes, wrong = (0.5, 1, 2), []
    for asked in ((a, b, c) for a in sizes for b in sizes for c in sizes):
        run = run_of(rollout={"num_cpus": asked[0]}, judging={"num_cpus": asked[1]}, learn={"num_cpus": asked[2]})
        for nodes in ((x, y, z) for x in (0, 1, 2) for y in (0, 1, 2) for z in (0, 1, 3)):
            supply = Supply(nodes=[Node(resources={"CPU": float(size)}) for size in nodes])
            if refusal(demands_of(run), supply) is not None and packs(asked, nodes):
                wrong.append((asked, nodes))
    assert not wrong


def packs(asked: tuple[float, ...], nodes: tuple[float, ...]) -> bool:
    if not asked:
        return True
    return any(
        size >= asked[0] and packs(asked[1:], (*nodes[:number], size - asked[0], *nodes[number + 1 :]))
        for number, size in enumerate(nodes)
    )


# -- labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("spot", "spot", True), ("spot", None, False), ("!spot", "spot", False), ("!spot", None, True),
        ("in(a, b)", "b", True), ("in(a,b)", "c", False), ("!in(a, b)", "c", True), ("!in(a, b)", "a", False),
    ],
)  # fmt: skip
def test_a_selector_matches_as_rays_does(condition: str, value: str | None, holds: bool):
    labels = {} if value is None else {"market": value}
    assert matches({"market": condition}, labels) == holds


@pytest.mark.parametrize("bad", [{"pool": ""}, {"pool": "in()"}, {"pool": "a b"}, {"po ol": "a"}, {"pool": "!!a"}])
def test_a_selector_that_ray_refuses_is_refused_with_the_run_file(bad: dict[str, str]):
    from ray._private.label_utils import validate_label_selector

    with pytest.raises(InputError, match=r"rollout.labels.*expected"):
        run_of(rollout={"labels": bad})
    assert bad == {"pool": ""} or validate_label_selector(bad)
    good = {"solon.io/pool": "rollout", "ray.io/market-type": "!spot", "zone": "!in(a, b-1)"}
    assert validate_label_selector(check_labels(good)) is None


# -- configurations of autoscalers ---------------------------------------------------------------------------------


def test_reading_an_autoscaler_configuration_copies_no_secrets():
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "gen": {"resources": {"CPU": 2}, "node_config": {"token": "secret"}},
    }
    config = {"auth": {"key": "secret"}, "max_workers": 3, "head_node_type": "head", "available_node_types": kinds}
    found = extract(config)
    assert "secret" not in str(found)
    types, at_most = node_types(found)
    assert types == (kind("gen", at_most=3, CPU=2),)  # no max_workers: those of the cluster
    assert at_most == 3


def test_a_node_type_without_resources_leaves_the_future_supply_unknown():
    config = {"available_node_types": {"local.cluster.node": {"resources": {}, "max_workers": 4}}, "max_workers": 4}
    assert node_types(config)[0] is None


def launcher_file() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return config


def test_the_launcher_file_is_valid_to_ray_once_its_image_is_set(monkeypatch: pytest.MonkeyPatch):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = launcher_file()
    config["docker"]["image"] = "registry.example/solon:0.1.0"
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == sum(kind["max_workers"] for kind in config["available_node_types"].values())
    for name, one in config["available_node_types"].items():
        assert "ImageId" in one["node_config"], f"{name}: Ray would take an image that is too old for the drivers"


def test_the_launcher_file_holds_the_example_for_it_and_refuses_one_engine_more_than_it_has_nodes():
    types, at_most = node_types(extract(launcher_file()))
    supply = Supply(nodes=[HEAD], types=types, at_most=at_most)

    def pools(engines: int) -> RunFile:
        def section(pool: str, **more: Any) -> dict[str, Any]:
            return {"num_gpus": 1, "labels": {"solon.io/pool": pool}, **more}

        return run_of(
            rollout=section("rollout", num_actors=engines),
            judging=section("judge", num_actors=3),
            learn=section("learner"),
        )

    check_cluster(pools(8), supply)
    assert "9 x rollout asks for 1 CPU, 1 GPU, solon.io/pool=rollout each" in refused(pools(9), supply)
    for example in ("one_gpu.toml", "nursery.toml"):
        check_cluster(RunFile.load(ROOT / "examples" / example), supply)
