"""Puts the actors of a run on a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.calls import Spawn
from actors.judge import JudgeActor, RemoteJudge
from actors.learner import LearnerActor, RemoteLearner
from actors.limits import LimitsActor, RemoteLimits
from actors.rollout import RemoteRollout, RolloutActor
from cluster.config.run_file import RunFile
from cluster.config.sections import EngineSection, LearnSection
from cluster.placement.placement import demands_of
from cluster.placement.waiting import Waiting
from cluster.ray_session.session import ClusterInfo as ClusterInfo
from cluster.ray_session.session import cluster as cluster
from cluster.ray_session.worker_path import refuse_foreign_code
from solon.clock import Clock
from solon.constitution.constitution import Constitution
from solon.errors import ForeignCodeError, RunFailedError, first_cause
from solon.feedback.caches.semantic import SemanticConfig
from solon.feedback.judges.assembly import Source
from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.panels.panel_config import CascadeSection, JurySection
from solon.feedback.panels.selective import SelectionSection
from solon.feedback.prompting.prompts import NO_SECRET, TEMPLATES
from solon.feedback.prompting.secret import nonce_secret
from solon.pipeline.rollout import RolloutSettings
from solon.protocols import PayloadRef
from solon.records import Weights
from solon.recovery.guard import Guard, mutual_failover, start_limit
from solon.recovery.startup import start
from solon.recovery.supervised_lanes import SupervisedJudge, SupervisedLearner, SupervisedRollout


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSet:
    """The workers of a run, engines built and warm, each with a guard that replaces it when it is lost."""

    rollout: list[SupervisedRollout]
    judges: list[SupervisedJudge]
    learner: SupervisedLearner
    auditor: SupervisedJudge | None
    judge_identity: JudgeIdentity
    initial: tuple[Weights, PayloadRef]

    @property
    def guards(self) -> list[Guard]:
        guards = [*(lane.guard for lane in self.rollout), *(lane.guard for lane in self.judges), self.learner.guard]
        return [*guards, *([self.auditor.guard] if self.auditor else [])]

    async def close(self) -> None:
        """Nobody is replaced any more."""
        await asyncio.gather(*(guard.close() for guard in self.guards))


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

    `on_ready` is called with the name of each actor when it is up; `tell` hears of workers that are lost and replaced.
    """

    def __init__(
        self,
        run: RunFile,
        constitution: Constitution,
        *,
        run_name: str,
        emit: Callable[..., None],
        checkpoint: str = "",
        clock: Clock | None = None,
    ) -> None:
        """checkpoint: the directory that the learner starts from; empty: the policy as it is. clock: what deadlines
        are measured with."""
        self._run = run
        self._namespace = f"solon-{run_name}"
        self._constitution = constitution
        self._emit = emit
        self._checkpoint = checkpoint
        self._clock = clock or Clock()
        # One secret for all runs of this user, so that they share cached verdicts. Not in the run file: it is written
        # out with every run.
        self._secret = nonce_secret() if TEMPLATES[run.feedback.template].fenced else NO_SECRET

    async def launch(
        self, *, on_ready: Callable[[str], None], say: Callable[[str], None] = lambda line: None
    ) -> WorkerSet:
        """`say` is told every few seconds which actors have no place yet. Raises InputError for what the models' files
        make impossible, RunFailedError for what dies, finds no place in time, or is not ready in time after that."""
        recovery = self._run.recovery
        rollout, judges, learner = self.rollout(), self.judges(), self.learner()
        auditor = self.audit_judge() if self._run.auditor else None
        waiting = Waiting(demands_of(self._run), say=say, emit=self._emit)

        async def ready(worker: Any, *arguments: Any) -> Any:
            limit = start_limit(recovery, self._clock)

            def placed() -> None:
                limit.placed()
                waiting.placed(worker.name)

            try:
                result = await limit.within(
                    start(worker, *arguments, emit=self._emit, waits=limit.waits, placed=placed)
                )
            except TimeoutError:
                if not limit.has_place:
                    raise await waiting.failure(recovery.node_timeout_s) from None
                raise RunFailedError(f"{worker.name} {limit.missed}") from None
            on_ready(worker.name)
            return result

        reporting = asyncio.ensure_future(waiting.report())
        try:
            identity, initial = await self._start_all(ready, rollout, judges, learner, auditor)
        except ExceptionGroup as failures:
            cause = first_cause(failures)
            if isinstance(cause, ForeignCodeError):
                await asyncio.to_thread(refuse_foreign_code)
            raise cause from None
        finally:
            reporting.cancel()
        return self._supervised(rollout, judges, learner, auditor, identity, initial)

    async def _start_all(
        self,
        ready: Callable[..., Any],
        rollout: Sequence[RemoteRollout],
        judges: Sequence[RemoteJudge],
        learner: RemoteLearner,
        auditor: RemoteJudge | None,
    ) -> tuple[JudgeIdentity, tuple[Weights, PayloadRef]]:
        """All at once; what the first judge and the learner say of themselves."""
        async with asyncio.TaskGroup() as group:
            identities = [group.create_task(ready(judge)) for judge in judges]
            initial = group.create_task(ready(learner, self._checkpoint))
            for worker in (*rollout, *([auditor] if auditor is not None else [])):
                group.create_task(ready(worker))
        return identities[0].result(), initial.result()

    def _supervised(
        self,
        rollout: Sequence[RemoteRollout],
        judges: Sequence[RemoteJudge],
        learner: RemoteLearner,
        auditor: RemoteJudge | None,
        identity: JudgeIdentity,
        initial: tuple[Weights, PayloadRef],
    ) -> WorkerSet:
        recovery, emit, clock = self._run.recovery, self._emit, self._clock
        engines = [SupervisedRollout(lane, Guard(lane, recovery, emit=emit, clock=clock)) for lane in rollout]
        labelling = [SupervisedJudge(judge, Guard(judge, recovery, emit=emit, clock=clock)) for judge in judges]
        mutual_failover([lane.guard for lane in engines])
        mutual_failover([lane.guard for lane in labelling])
        return WorkerSet(
            rollout=engines,
            judges=labelling,
            learner=SupervisedLearner(learner, recovery, checkpoint=self._checkpoint, emit=emit, clock=clock),
            auditor=(
                None if auditor is None else SupervisedJudge(auditor, Guard(auditor, recovery, emit=emit, clock=clock))
            ),
            judge_identity=identity,
            initial=initial,
        )

    def names(self) -> list[str]:
        """Every actor that `on_ready` will name."""
        rollouts = [f"rollout-{i}" for i in range(self._run.rollout.num_actors)]
        judges = [f"judge-{i}" for i in range(self._run.judging.num_actors)]
        return [*rollouts, *judges, "learner", *(["audit-judge"] if self._run.auditor else [])]

    def audit_judge(self) -> RemoteJudge:
        """Another judge, for evaluation and audit alone: always asked yes/no, never in the loop."""
        section = self._run.judging
        feedback = self._run.feedback.model_copy(
            update={"task": "pointwise", "principles_per_group": 0, "calibration": "", **_ALONE}
        )

        def spawn(made: int) -> Any:
            return JudgeActor.options(**self._options("audit-judge", section, made)).remote(
                section.engine(self._run.auditor, seed=self._run.seed),
                feedback,
                self._constitution,
                name="audit-judge",
                secret=self._secret,
            )

        return RemoteJudge(spawn, name="audit-judge", groups_at_once=1)

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

    def rollout(self) -> list[RemoteRollout]:
        """The engines that write."""
        section = self._run.rollout
        settings = RolloutSettings(
            sampling=section.sampling(),
            group_size=section.group_size,
            seed=self._run.seed,
            salvage_every_s=self._run.recovery.salvage_every_s,
            cuts_overlong=self._run.data.overlong == "cut",
        )

        def spawner(name: str) -> Spawn:
            return lambda made: RolloutActor.options(**self._options(name, section, made)).remote(
                section.engine(self._run.policy, seed=self._run.seed), settings, name=name
            )

        # Twice what it decodes together: when an answer ends, the next one is already there.
        places = max(2, 2 * section.max_running // section.group_size)
        names = [f"rollout-{index}" for index in range(section.num_actors)]
        return [RemoteRollout(spawner(name), name=name, groups_at_once=places) for name in names]

    def judges(self) -> list[RemoteJudge]:
        """The engines that label."""
        section = self._run.judging
        source, port = self._judge_source()
        others = [self._source(other) for other in self._run.feedback.panel]

        def spawner(name: str) -> Spawn:
            return lambda made: JudgeActor.options(**self._options(name, section, made)).remote(
                source,
                self._run.feedback,
                self._constitution,
                name=name,
                others=others,
                secret=self._secret,
                port=port,
            )

        places = max(2, 2 * section.max_running // self._run.rollout.group_size)
        names = [f"judge-{index}" for index in range(section.num_actors)]
        return [RemoteJudge(spawner(name), name=name, groups_at_once=places) for name in names]

    def learner(self) -> RemoteLearner:
        """The process that trains."""
        section = self._run.learn

        def spawn(made: int) -> Any:
            return LearnerActor.options(**self._options("learner", section, made)).remote(
                section.placed,
                model=self._run.policy,
                sampling=self._run.rollout.sampling(),
                seed=self._run.seed,
                name="learner",
            )

        return RemoteLearner(spawn, name="learner")

    def _options(self, name: str, section: EngineSection | LearnSection, made: int) -> dict[str, Any]:
        return {
            # The name of a lost actor is taken until Ray has forgotten it.
            "name": f"{name}.{made}" if made else name,
            "namespace": self._namespace,
            "num_cpus": section.num_cpus,
            "num_gpus": section.num_gpus,
            "label_selector": dict(section.labels),
            "runtime_env": worker_environment(section.threads, on_gpu=section.num_gpus > 0),
        }


def worker_environment(threads: int, *, on_gpu: bool) -> dict[str, Any]:
    """Environment of a worker process: its share of the threads, no progress bars in its log, no GPU that it did not
    ask for."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Empty means unset to Python: workers write bytecode, so the next start imports twice as fast.
        "PYTHONDONTWRITEBYTECODE": "",
        # What a library starts in it does not import from the folder that the machine's Ray was started in.
        "PYTHONSAFEPATH": "1",
    }
    if not on_gpu:
        # Ray hides no device from an actor that asks for none, unless it is told to; where
        # RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES is set it never does.
        variables |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {"env_vars": variables}
