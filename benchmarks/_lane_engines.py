"""The rollout lane and the judge lane against vLLM's own offline `generate`."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._harness import Row
from benchmarks._rounds import Rounds, timed
from solon.constitution.constitution import Constitution
from solon.engines.base import EngineConfig, Request
from solon.feedback.config import FeedbackConfig
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.dataset import text_group
from solon.feedback.worker import JudgeWorker
from solon.files.prompts import load_prompts, prompt_id
from solon.ledger.leases import Grant
from solon.pipeline.rollout import RolloutSettings, RolloutWorker, seed_of
from solon.protocols import Assignment
from solon.records import Group, Message, Prompt, Sampling
from solon.recovery.config import RecoveryConfig
from solon.runs.directory import RunDirectory
from solon.runs.tables import label_rows

Answers = dict[tuple[int, int], tuple[int, ...]]
"""Token ids by ordinal and place in the group."""
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GROUP_SIZE = 8
RUNNING = 32
"""Answers decoded together; the lane holds twice as many."""


class BareVllm:
    """`vllm.LLM` with the arguments that Solon's engine passes for the same configuration."""

    def __init__(self, config: EngineConfig) -> None:
        from vllm import LLM

        from solon.engines import vllm_build

        vllm_build.prepare_process(config)
        arguments = vllm_build._arguments(config, on_cpu=True)
        # Without the places for attestation, which no bare engine has.
        self._llm = LLM(**arguments | {"max_num_seqs": config.max_running})
        vllm_build._live.add(id(self._llm.llm_engine))  # so that no other engine that closes tears down its groups

    def generate(self, prompts: Sequence[Sequence[int]], parameters: Any) -> list[Any]:
        """Completions of token ids in one call."""
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs: list[Any] = self._llm.generate(inputs, parameters, use_tqdm=False)
        return outputs

    def close(self) -> None:
        from solon.engines.vllm_build import stop_vllm

        stop_vllm(self._llm.llm_engine)
        del self._llm
        gc.collect()


# -- rollouts --------------------------------------------------------------------------------------------------


def rollout_rows(model: str, *, quick: bool, threads: int) -> list[Row]:
    """Tokens per second of the rollout worker, in this process and in an actor on Ray; in bfloat16, where a processor
    with matrix tiles leaves the least time in which overhead could hide."""
    if quick:
        return _rollout(model, "bfloat16", rounds=2, length=12, threads=threads, on_ray=False)
    return _rollout(model, "bfloat16", rounds=4, length=24, threads=threads, on_ray=True)


def _rollout(model: str, dtype: str, *, rounds: int, length: int, threads: int, on_ray: bool) -> list[Row]:
    from solon.engines.vllm_cpu_sampling import one_number_for_a_token

    config = EngineConfig.model_validate(
        {"model": model, "dtype": dtype, "max_model_len": 256, "max_running": RUNNING, "threads": threads}
    )
    settings = RolloutSettings(
        sampling=Sampling(max_tokens=length),
        group_size=GROUP_SIZE,
        seed=0,
        salvage_every_s=RecoveryConfig().salvage_every_s,
    )
    groups = 2 * RUNNING // GROUP_SIZE
    lane = Lane(LongRolloutWorker(config, settings, name="rollout-0"))
    lane_answers: Answers = {}

    def ours(number: int) -> float:
        found: list[Group] = []
        seconds = timed(lambda: found.extend(lane.generate(assignments(groups, number))))
        lane_answers.update({(g.ordinal, i): tuple(r.token_ids) for g in found for i, r in enumerate(g.rollouts)})
        return seconds

    bare = BareRollouts(config, lane, groups=groups, length=length)
    tokens = float(groups * GROUP_SIZE * length)
    measured = Rounds(f"rollout, {dtype}: tokens/s (reference: bare vLLM)", tokens)
    ours(-1)
    bare.seconds(-1)
    measured.take(rounds, ours, bare.seconds)
    rows = measured.rows(">= 0.95")
    bare.close()
    # Solon draws tokens with fewer random numbers. With the same sampler, what remains is the lane itself.
    with one_number_for_a_token():
        bare = BareRollouts(config, lane, groups=groups, length=length)
    measured = Rounds(f"rollout, {dtype}: tokens/s (reference: bare vLLM with Solon's sampler)", tokens)
    bare.seconds(-1)
    measured.take(rounds, ours, bare.seconds)
    same = sum(lane_answers[key] == answer for key, answer in bare.answers.items()) / len(bare.answers)
    rows += [
        *measured.rows(">= 0.95"),
        Row(f"rollout, {dtype}: answers with the same tokens on both sides, share", same),
    ]
    lane.close()
    if on_ray:
        what = f"rollout, {dtype}, in an actor on Ray: tokens/s (reference: bare vLLM with Solon's sampler)"
        rows += _on_ray(config, settings, groups, bare, Rounds(what, tokens), rounds)
    bare.close()
    return rows


class BareRollouts:
    """The answers of a round by one call of `generate`."""

    def __init__(self, config: EngineConfig, lane: Lane, *, groups: int, length: int) -> None:
        self._bare, self._lane, self._groups, self._length = BareVllm(config), lane, groups, length
        self.answers: Answers = {}

    def seconds(self, number: int) -> float:
        from vllm import SamplingParams

        work = assignments(self._groups, number)
        keys = [(item.grant.ordinal, index) for item in work for index in range(GROUP_SIZE)]
        prompts = [self._lane.encode(item.prompt) for item in work for _ in range(GROUP_SIZE)]
        common: dict[str, Any] = {"max_tokens": self._length, "logprobs": 0, "ignore_eos": True, "detokenize": False}
        parameters = [SamplingParams(temperature=1.0, seed=seed_of(0, ordinal, 0, i), **common) for ordinal, i in keys]
        found: list[Any] = []
        seconds = timed(lambda: found.extend(self._bare.generate(prompts, parameters)))
        outputs = zip(keys, found, strict=True)
        self.answers.update({key: tuple(output.outputs[0].token_ids) for key, output in outputs})
        return seconds

    def close(self) -> None:
        self._bare.close()


def _on_ray(
    config: EngineConfig, settings: RolloutSettings, groups: int, bare: BareRollouts, measured: Rounds, rounds: int
) -> list[Row]:
    """The same through the actor that a run uses. Groups stay in the object store, as they do in a run."""
    import ray

    from actors.rollout import RemoteRollout, RolloutShell
    from cluster.launch import cluster
    from cluster.pools.base import worker_environment

    class LongRolloutShell(Endless, RolloutShell):
        """The actor's class, with answers of full length."""

    with cluster(dashboard=False):
        environment = worker_environment(config.threads, on_gpu=False)
        actor = ray.remote(LongRolloutShell).options(runtime_env=environment, num_cpus=1)
        remote = RemoteRollout(
            lambda _: actor.remote(config, settings, name="rollout-1"), name="rollout-1", groups_at_once=groups
        )
        lane = Lane(remote)

        def ours(number: int) -> float:
            return timed(lambda: lane.generate(assignments(groups, number)))

        ours(-1)
        measured.take(rounds, ours, bare.seconds)
        remote.end()
    return measured.rows(">= 0.95")


class Endless:
    """Answers of full length: the end of a turn does not end them."""

    async def start(self: Any) -> None:
        await self._runner.ready()
        parameters = self._runner._engine._parameters
        parameters.options["ignore_eos"], parameters.stops = True, ()
        await super().start()  # type: ignore[misc]


class LongRolloutWorker(Endless, RolloutWorker):
    """The worker, with answers of full length."""


class Lane:
    """A rollout worker, here or in an actor, called from code without an event loop."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._loop = asyncio.Runner()
        self._loop.run(worker.start())

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The token ids that the worker gives its engine."""
        ids: tuple[int, ...] = self._worker._encode(prompt)[1].token_ids
        return ids

    def generate(self, work: Sequence[Assignment]) -> list[Any]:
        """All groups, in order of completion."""

        async def collect() -> list[Any]:
            found = [item async for item in self._worker.generate(work)]
            return [item[1] for item in found if isinstance(item, tuple) and item[1] is not None]

        return self._loop.run(collect())

    def close(self) -> None:
        self._loop.run(self._worker.close())
        self._loop.close()


def assignments(groups: int, number: int) -> list[Assignment]:
    """The work of a round: other prompts and other seeds in every round."""
    texts = [prompt.messages[-1].content for prompt in load_prompts(EXAMPLES / "assistant_prompts.jsonl").prompts]
    found = []
    for index in range(groups):
        ordinal = (number + 1) * groups + index
        messages = (Message(role="user", content=f"{number + 2}. {texts[index % len(texts)]}"),)
        prompt = Prompt(prompt_id=prompt_id(messages), messages=messages)
        found.append(Assignment(grant=Grant(ordinal, 0, 0), prompt=prompt))
    return found


# -- verdicts --------------------------------------------------------------------------------------------------


def judge_rows(model: str, *, quick: bool, threads: int) -> list[Row]:
    """Verdicts per second of the judge worker, caches, parsing and the rows on disk included."""
    rounds, groups = (2, 2) if quick else (5, 4)
    rows: list[Row] = []
    for dtype in ("bfloat16",) if quick else ("float32", "bfloat16"):
        rows += _judge(model, dtype, rounds=rounds, groups=groups, threads=threads)
    return rows


def _judge(model: str, dtype: str, *, rounds: int, groups: int, threads: int) -> list[Row]:
    from vllm import SamplingParams

    config = EngineConfig.model_validate(
        {"model": model, "dtype": dtype, "max_model_len": 1024, "max_running": 128, "threads": threads}
    )
    # A small model puts little probability on its labels. Without a minimum, no question is asked a second time.
    feedback = FeedbackConfig(min_mass=1e-9)
    constitution = Constitution.load(EXAMPLES / "assistant.yaml")
    worker = JudgeWorker(config, feedback, constitution, name="judge-0")
    loop = asyncio.Runner()
    loop.run(worker.start())
    judge: Any = worker._judge
    bare = BareVllm(config)
    asked = Recorded(judge.runner)
    parameters = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
    parameters.logprob_token_ids = list(judge.prompts.bool_ids)
    labelled: list[int] = []

    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(folder, "bench", default="bench")

        async def label(work: Sequence[Group]) -> None:
            found = await asyncio.gather(*(worker.label(group) for group in work))
            rows = [row for _, feedback in found for row in label_rows(feedback, {"run_id": "bench"})]
            directory.write_rows("labels", rows)
            labelled.append(len(rows))

        def ours(number: int) -> float:
            work = judged_groups(groups, number)
            asked.prompts.clear()
            seconds = timed(lambda: loop.run(label(work)))
            assert sorted(asked.prompts) == sorted(questions_of(judge, feedback, constitution, work))
            return seconds

        def theirs(number: int) -> float:
            prompts = questions_of(judge, feedback, constitution, judged_groups(groups, number))
            found: list[Any] = []
            seconds = timed(lambda: found.extend(bare.generate(prompts, parameters)))
            assert all(output.outputs[0].logprobs for output in found)
            return seconds

        ours(-1)
        theirs(-1)
        measured = Rounds(f"judge, {dtype}: verdicts/s (reference: bare vLLM)", float(labelled[0]))
        measured.take(rounds, ours, theirs)
        directory.close()
    assert len(set(labelled)) == 1
    tokens = sum(map(len, asked.prompts)) / len(asked.prompts)
    print(f"judge {dtype}: {labelled[0]} verdicts a round, {tokens:.0f} tokens each; ours {measured.ours} s, bare "
          f"{measured.reference} s", flush=True)  # fmt: skip
    loop.run(worker.close())
    bare.close()
    return measured.rows(">= 0.95")


class Recorded:
    """Keeps the token ids that reach an engine."""

    def __init__(self, runner: Any) -> None:
        self.prompts: list[tuple[int, ...]] = []
        generate = runner.generate

        async def recorded(requests: Sequence[Request]) -> Any:
            self.prompts += [request.prompt_token_ids for request in requests]
            return await generate(requests)

        runner.generate = recorded


def questions_of(
    judge: Any, feedback: FeedbackConfig, constitution: Constitution, groups: Sequence[Group]
) -> list[tuple[int, ...]]:
    """The token ids of the questions about these groups, one principle after the other for every answer."""
    labeler = Labeler(judge, config=feedback, constitution=constitution)
    found = []
    for group in groups:
        for rollouts in labeler._subjects(group):
            for asked in labeler._choose(group):
                ids = judge.prompts.pointwise(group.conversation, group.rollouts[rollouts[0]].text, asked.question)
                found.append(ids)
    return found


def judged_groups(groups: int, number: int) -> list[Group]:
    """Answers of 40 drawn words each to the prompts of a round."""
    rng = random.Random(f"answers-{number}")
    work = assignments(groups, number)
    words = [word for item in assignments(12, 0) for word in item.prompt.messages[-1].content.split()]
    return [
        text_group(item.grant.ordinal, item.prompt, [" ".join(rng.choices(words, k=40)) for _ in range(GROUP_SIZE)])
        for item in work
    ]
