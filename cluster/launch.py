"""Joins or starts a Ray cluster and puts the actors of a run on it. The only place that calls `ray.init`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.judge import JudgeActor, RemoteJudge
from actors.learner import LearnerActor, RemoteLearner
from actors.ledger import LedgerActor, RemoteLedger
from actors.limits import LimitsActor, RemoteLimits
from actors.rollout import RemoteRollout, RolloutActor
from cluster.preflight import check_cluster
from cluster.run_file import EngineSection, RunFile
from solon.constitution import Constitution
from solon.errors import first_cause
from solon.feedback.asking.prompts import NO_SECRET, TEMPLATES
from solon.feedback.asking.secret import nonce_secret
from solon.feedback.caches.semantic import SemanticConfig
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.hosted import Source
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.panels.panel_config import CascadeSection, JurySection
from solon.feedback.panels.selective import SelectionSection
from solon.protocols import Box
from solon.records import Sampling, Weights
from solon.rollout import RolloutSettings


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What a person wants to know about the cluster."""

    address: str
    dashboard_url: str
    resources: dict[str, float]
    token_path: str
    """File with the token that the dashboard asks for; empty when the cluster has none."""


@contextlib.contextmanager
def cluster(*, dashboard: bool = True) -> Iterator[ClusterInfo]:
    """The cluster of `RAY_ADDRESS` (set by `ray job submit`), or a local one that ends with the block."""
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address} if address else {"address": "local"}
    if not address:
        options |= {"include_dashboard": dashboard, "dashboard_host": "127.0.0.1"}
    context = ray.init(log_to_driver=False, logging_level="ERROR", **options)
    try:
        yield ClusterInfo(
            address=str(context.address_info.get("gcs_address") or "local"),
            dashboard_url=str(context.dashboard_url or ""),
            resources=ray.cluster_resources(),
            token_path=_private_token() if not address else "",
        )
    finally:
        ray.shutdown()


def _private_token() -> str:
    """Where Ray keeps the local cluster's token, readable by its owner alone: Ray makes it readable by all."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_MODE") != "token" or not path.exists():
        return ""
    path.chmod(0o600)
    return str(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """The actors of a run, engines built and warm."""

    rollout: list[RemoteRollout]
    judges: list[RemoteJudge]
    learner: RemoteLearner
    ledger: RemoteLedger
    judge_identity: JudgeIdentity
    initial: tuple[Weights, Box]


_ALONE: dict[str, Any] = {
    "calibration": "",
    "cascade": CascadeSection(),
    "jury": JurySection(),
    "semantic": SemanticConfig(),
    "select": SelectionSection(),
}
"""What an audit does without: it is one judge, asked directly."""


class Launcher:
    """Creates the actors, then starts all of them at once.

    `on_ready` is called with the name of each actor when it is up.
    """

    def __init__(self, run: RunFile, constitution: Constitution, *, run_name: str) -> None:
        self._run = run
        self._namespace = f"solon-{run_name}"
        self._constitution = constitution
        # One secret for all runs of this user, so that they share cached verdicts. Not in the run file: it is written
        # out with every run.
        self._secret = nonce_secret() if TEMPLATES[run.feedback.template].fenced else NO_SECRET

    async def launch(self, *, total_groups: int, on_ready: Callable[[str], None]) -> Crew:
        """Raises InputError for what the models' files make impossible, RunFailedError for what dies."""
        check_cluster(self._run, ray.cluster_resources())
        ledger, rollout, judges = self._ledger(total_groups), self._rollout(), self._judges()
        learner = self._learner()

        async def ready(name: str, starting: Any) -> Any:
            result = await starting
            on_ready(name)
            return result

        try:
            async with asyncio.TaskGroup() as group:
                identities = [group.create_task(ready(j.name, j.start())) for j in judges]
                initial = group.create_task(ready(learner.name, learner.start()))
                for lane in rollout:
                    group.create_task(ready(lane.name, lane.start()))
        except ExceptionGroup as failures:
            raise first_cause(failures) from None
        return Crew(
            rollout=rollout,
            judges=judges,
            learner=learner,
            ledger=ledger,
            judge_identity=identities[0].result(),
            initial=initial.result(),
        )

    async def audit_judge(self) -> RemoteJudge:
        """Another judge, for evaluation alone: always asked yes/no, never in the loop."""
        section = self._run.judging
        actor = JudgeActor.options(**self._options("audit-judge", section)).remote(
            section.engine(self._run.auditor, seed=self._run.seed),
            self._run.feedback.model_copy(update={"task": "pointwise", "principles_per_group": 0, "calibration": ""}),
            self._constitution,
            name="audit-judge",
            secret=self._secret,
        )
        judge = RemoteJudge(actor, name="audit-judge", groups_at_once=1)
        await judge.start()
        return judge

    def names(self) -> list[str]:
        """Every actor that `on_ready` will name."""
        rollouts = [f"rollout-{i}" for i in range(self._run.rollout.num_actors)]
        return [*rollouts, *(f"judge-{i}" for i in range(self._run.judging.num_actors)), "learner"]

    def _ledger(self, total_groups: int) -> RemoteLedger:
        actor = LedgerActor.options(name="ledger", namespace=self._namespace).remote(
            self._run.ledger, self._run.staleness, total_groups=total_groups
        )
        return RemoteLedger(actor)

    def _source(self, judge: str) -> Source:
        """What a judge of this name runs on."""
        if EndpointFile.names(judge):
            return EndpointFile.load(judge)
        return self._run.judging.engine(judge, seed=self._run.seed)

    def _judge_source(self) -> tuple[Source, RemoteLimits | None]:
        """What the judges run on; an endpoint's limits hold for all of them together."""
        run = self._run
        source = self._source(run.judge)
        if not isinstance(source, EndpointFile):
            return source, None
        # On the driver's node: its spend file lies there.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = LimitsActor.options(name="limits", namespace=self._namespace, scheduling_strategy=here)
        return source, RemoteLimits(actor.remote(source.limits))

    def _rollout(self) -> list[RemoteRollout]:
        section = self._run.rollout
        settings = RolloutSettings(
            sampling=Sampling(max_tokens=section.max_tokens, temperature=section.temperature),
            group_size=section.group_size,
            seed=self._run.seed,
        )
        lanes = []
        for index in range(section.num_actors):
            name = f"rollout-{index}"
            actor = RolloutActor.options(**self._options(name, section)).remote(
                section.engine(self._run.policy, seed=self._run.seed), settings, name=name
            )
            # Twice what it decodes together: when an answer ends, the next one is already there.
            places = max(2, 2 * section.max_running // section.group_size)
            lanes.append(RemoteRollout(actor, name=name, groups_at_once=places))
        return lanes

    def _judges(self) -> list[RemoteJudge]:
        section = self._run.judging
        source, port = self._judge_source()
        lanes = []
        for index in range(section.num_actors):
            name = f"judge-{index}"
            actor = JudgeActor.options(**self._options(name, section)).remote(
                source,
                self._run.feedback,
                self._constitution,
                name=name,
                others=[self._source(other) for other in self._run.feedback.panel],
                secret=self._secret,
                port=port,
            )
            places = max(2, 2 * section.max_running // self._run.rollout.group_size)
            lanes.append(RemoteJudge(actor, name=name, groups_at_once=places))
        return lanes

    def _learner(self) -> RemoteLearner:
        section = self._run.learn
        actor = LearnerActor.options(
            name="learner",
            namespace=self._namespace,
            num_cpus=section.num_cpus,
            num_gpus=section.num_gpus,
            runtime_env=worker_environment(section.threads),
        ).remote(
            section,
            model=self._run.policy,
            temperature=self._run.rollout.temperature,
            seed=self._run.seed,
            name="learner",
        )
        return RemoteLearner(actor, name="learner")

    def _options(self, name: str, section: EngineSection) -> dict[str, Any]:
        return {
            "name": name,
            "namespace": self._namespace,
            "num_cpus": section.num_cpus,
            "num_gpus": section.num_gpus,
            "runtime_env": worker_environment(section.threads),
        }


def worker_environment(threads: int) -> dict[str, Any]:
    """Environment of a worker process: its share of the threads, no progress bars in its log."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Empty means unset to Python: workers write bytecode, so the next start imports twice as fast.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    return {"env_vars": variables}
