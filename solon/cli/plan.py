"""`solon plan`: memory, split, throughput and cost of a run, before anything is rented or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from solon.cli.names import uses_names, with_paths
from solon.cli.tables import print_table
from solon.cli.terminal import visible
from solon.errors import InputError

if TYPE_CHECKING:
    from cluster.config.run_file import RunFile
    from cluster.plan.planner import Plan

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What the command line asked for."""

    path: Path
    gpus: int | None
    gpu_type: str
    gpus_per_node: int
    rates: Path | None
    price: float | None
    write: Path | None
    force: bool
    overrides: list[str]
    as_json: bool


def run_plan(request: PlanRequest) -> dict[str, Any]:
    """Prints the plan; returns it. Raises InputError for what cannot be planned, with what does not fit and by how
    much."""
    from cluster.pipeline_file import load_run
    from cluster.plan.hardware import device_of
    from cluster.plan.write import planned_file, require_new

    _require_a_machine(request)
    device = device_of(request.gpu_type) if request.gpu_type else None
    if request.write is not None:
        require_new(request.path, request.write, force=request.force)
    run = load_run(request.path, overrides=request.overrides)
    if run.learn.num_nodes > 1:
        raise InputError(
            f"learn.num_nodes = {run.learn.num_nodes}, expected 1: learners of one node are planned; add --set "
            "learn.num_nodes=1"
        )
    if uses_names(run):
        run = with_paths(run, progress=not request.as_json)
    show = _Show(quiet=request.as_json)
    plan = _plan(request, run, device)
    show.plan(plan)
    if request.write is not None:
        text = planned_file(request.path, request.overrides, plan, folder=request.write.parent)
        request.write.write_text(text, encoding="utf-8")
        show.line(f"wrote {request.write}; next: solon check {request.write}")
    return plan.as_json()


def _require_a_machine(request: PlanRequest) -> None:
    if request.rates is None and not request.gpu_type:
        raise InputError(
            "nothing says what to plan for: give --gpus N --gpu-type TYPE for published rates, or --rates FILE of "
            "solon measure"
        )
    if request.gpu_type and request.gpus is None:
        raise InputError(f"--gpu-type {request.gpu_type} without --gpus; say how many: --gpus 8")


def _plan(request: PlanRequest, run: RunFile, device: Any) -> Plan:
    from cluster.config.fitting import fit_run, own_cpus
    from cluster.plan.memory import sizes_for
    from cluster.plan.planner import Purse, plan_devices, plan_here
    from cluster.plan.rates import Rates
    from cluster.plan.roofline import published_rates
    from solon.constitution.constitution import Constitution
    from solon.files.prompts import load_prompts

    # Models need not be here yet: prompts and constitution are read, weights are not.
    constitution = Constitution.load(run.constitution)
    prompts = load_prompts(run.prompts, read=run.data, max_bad_share=run.data.max_bad_share).prompts
    price = request.price
    measured = Rates.load(request.rates) if request.rates is not None else None
    if measured is not None:
        measured.require_models(run, str(request.rates))
        if measured.share_cores:
            if request.gpus:
                raise InputError(
                    f"rates file {request.rates} was measured on the cores of {measured.machine}, which say nothing "
                    f"about --gpus {request.gpus}; measure on such a device, or leave --rates out for published rates"
                )
            run, _ = fit_run(run, cpus=own_cpus())
            sizes, _ = sizes_for(run)
            return plan_here(
                run, measured.for_ranks(run), sizes, Purse(usd_per_hour=price or 0.0, is_placeholder=False)
            )
        if device is None or request.gpus is None:
            raise InputError(
                f"rates file {request.rates} was measured on a GPU; say how many there are and of which type: "
                "--gpus N --gpu-type TYPE"
            )
    run, _ = fit_run(run)
    run = _on_gpus(run)
    sizes, compressed = sizes_for(run)

    def rates_for(run: RunFile) -> Rates:
        if measured is not None:
            return measured.for_ranks(run)
        return published_rates(run, device, request.gpu_type, sizes, compressed, prompts, constitution)

    return plan_devices(
        run,
        rates_for,
        sizes,
        gpus=int(request.gpus or 0),
        gpus_per_node=request.gpus_per_node,
        device=device,
        purse=Purse(usd_per_hour=device.usd_per_hour if price is None else price, is_placeholder=price is None),
    )


def _on_gpus(run: RunFile) -> RunFile:
    """The same run, placed on devices."""
    return run.model_copy(
        update={
            name: getattr(run, name).model_copy(
                update={"num_gpus": 1.0, "num_actors": 1} if name != "learn" else {"num_gpus": 1.0, "num_ranks": 1}
            )
            for name in ("rollout", "judging", "learn")
        }
    )


class _Show:
    """Text output; nothing with --json."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(highlight=False, quiet=quiet)

    def line(self, text: str) -> None:
        self._console.print(Text(visible(text)), soft_wrap=True)

    def plan(self, plan: Plan) -> None:
        from cluster.plan.write import described

        self.line(f"rates: {described(plan.rates)}")
        for text in plan.rates.assumptions:
            self.line(f"  assumed: {text}")
        self._memory(plan)
        self._splits(plan)
        self._costs(plan)
        for text in plan.moves:
            self.line(f"would move it: {text}")
        if not plan.moves:
            self.line("nothing that was tried would move it by more than 1 %")
        for text in plan.remarks:
            self.line(f"note: {text}")

    def _memory(self, plan: Plan) -> None:
        rows: list[list[object]] = [["model", *(visible(Path(role.model).name) for role in plan.roles)]]
        rows.append(["workers", *(role.workers for role in plan.roles)])
        rows.append(["devices of each", *(f"{role.devices:g}" if role.devices else "CPU" for role in plan.roles)])
        rows += [[part, *(f"{getattr(role, part) / GIB:.2f}" for role in plan.roles)] for part in PARTS]
        rows.append(["peak", *(f"{role.total / GIB:.2f}" for role in plan.roles)])
        rows.append(["from", *("measured" if role.measured else "estimate" for role in plan.roles)])
        heads = [f"{role.role}, one rank" if role.ranks > 1 else role.role for role in plan.roles]
        print_table(self._console, _table("memory of one worker on one device, GiB", heads, rows))
        for role in plan.roles:
            if role.beside:
                self.line(f"working memory of the {role.role}, GiB: {role.beside}")
        if plan.device is not None:
            self.line(f"a device has {plan.device.memory_gib:.1f} GiB ({plan.device.source})")

    def _splits(self, plan: Plan) -> None:
        found = [plan.best, *plan.runners_up]
        rows: list[list[object]] = []
        if plan.device:
            rows.append(["split", *(one.split.workers for one in found)])
            rows.append(["devices", *(one.devices for one in found)])
        if any(one.split.sharing for one in found):
            shared = (
                "all" if len(one.split.sharing) == 3 else "+".join(one.split.sharing).replace("generate", "gen")
                for one in found
            )
            rows.append(["on one device", *shared])
        rows.append(["target_staleness", *(one.split.staleness for one in found)])
        rows.append(["groups/s", *(f"{one.groups_per_s:.4g}" for one in found)])
        rows.append(["s a step", *(f"{one.step_s:.3g}" for one in found)])
        for lane in ("generate", "label", "learn"):
            shares = (f"{one.busy[lane]:.0%} / {one.utilisation[lane]:.0%}" for one in found)
            rows.append([lane, *shares])
        rows.append(["binds", *(one.binds for one in found)])
        rows.append(["mean staleness", *(f"{one.staleness_mean:.2f}" for one in found)])
        if plan.purse.usd_per_hour:
            rows.append(["USD/1,000 groups", *(f"{one.usd_per_1000_groups:.4g}" for one in found)])
        heads = ["recommended", *(f"next {number}" for number in range(1, len(found)))]
        print_table(self._console, _table("predicted", heads, rows))
        self.line("split: engines : judges : learner ranks, 3x2 is 3 of 2 devices each; lanes: busy / utilisation")

    def _costs(self, plan: Plan) -> None:
        best, run = plan.best, plan.run
        self.line(
            f"recommended: {best.split}; max_running {run.rollout.max_running}; {best.tokens_per_s:,.0f} tokens/s; "
            f"overlap efficiency {best.efficiency:.2f}, {best.binds} binds; staleness {best.staleness_p50} in the "
            f"median, {best.staleness_max} at most (bound {run.staleness.max_staleness})"
        )
        if plan.purse.usd_per_hour:
            kind = "a placeholder, set --price" if plan.purse.is_placeholder else "as given"
            self.line(f"price: {plan.purse.usd_per_hour:g} USD for an hour of a device ({kind})")


PARTS = ("weights", "optimiser", "cache", "working", "runtime")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A row for each figure and a column for each role or split: it fits 80 columns."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table
