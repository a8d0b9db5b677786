"""The only training loop: minibatches, microbatches, gradients, optimiser steps, state and publication."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic

import torch
from torch import Tensor

from learners.core.agreement import Agreement, blame
from learners.core.config import OptimizerConfig
from learners.core.objective import BatchT, Loss, Metrics, MicrobatchT, Minibatch, Objective, Prepared, StepContext
from learners.core.optimizer import Optimizer
from learners.core.publish import Publisher, Publishing
from learners.core.staging import Staged, Staging
from learners.core.state import load_state, tensors_of
from solon.engines.chunks import collected
from solon.errors import RunFailedError
from solon.host.allocator import return_freed_memory
from solon.records import Chunk, Span, StepReport, Weights


class Trainer(Generic[BatchT, MicrobatchT]):
    """Trains the networks of an objective.

        trainer = Trainer(objective, config, schedule=config.rate, seed=0, publisher=publisher)
        weights = trainer.initial_weights()
        report, weights = trainer.step(0, batch)

    The same seed, networks and batches give the same weights. Every random draw comes from (seed, step), so a
    checkpoint needs no generator state.
    """

    def __init__(
        self,
        objective: Objective[BatchT, MicrobatchT],
        config: OptimizerConfig,
        *,
        schedule: Callable[[int], float],
        seed: int,
        name: str = "learner-0",
        publisher: Publisher | None = None,
    ) -> None:
        """schedule: factor on the peak learning rates at a step. publisher: of the policy; None: nothing is
        published."""
        self.objective, self.name = objective, name
        self.version = 0
        """Committed steps, which is the version of the weights."""
        self.optimizers = {
            part: Optimizer(
                network.module, network.learning_rate, config, schedule, objective.ranks,
                offload=getattr(config, "offload_optimizer", False),
            )
            for part, network in objective.parts().items()
        }  # fmt: skip
        self._agreement = Agreement(
            objective.ranks,
            [network.module for network in objective.parts().values()],
            [weight for one in self.optimizers.values() for weight in one.parameters.values()],
        )
        self._peak, self._schedule, self._seed = config.learning_rate, schedule, seed
        self._most_bad: int = getattr(config, "max_bad_steps", 0)
        self._bad = 0
        """Optimiser steps in a row that were not finite."""
        self._publisher = publisher
        self._staged: Staged | None = None
        self._attested: Weights | None = None
        """What was published of the present weights."""

    def initial_weights(self) -> Weights:
        """The present weights, copied: version 0, or after `load` the version of the checkpoint."""
        return collected(self.publish())

    def publish(self) -> Publishing:
        """Yields the present weights chunk by chunk; returns their manifest. A chunk may be a view of the policy: it is
        valid until the next one is asked for."""
        if self._publisher is None:
            raise ValueError(f"{type(self.objective).__name__} publishes nothing")
        manifest = yield from self._publisher.publish(self.version)
        self._attested = manifest
        return manifest

    def step(self, step: int, batch: BatchT) -> tuple[StepReport, Weights]:
        """`train`, and the weights of version `step + 1`, copied."""
        report: list[StepReport] = []

        def publishing() -> Publishing:
            found, manifest = yield from self.train_and_publish(step, batch)
            report.append(found)
            return manifest

        weights = collected(publishing())
        return report[0], weights

    def train_and_publish(self, step: int, batch: BatchT) -> Generator[Chunk, None, tuple[StepReport, Weights]]:
        """`train`, then yields the weights of version `step + 1` as `publish` does; returns the report and the
        manifest."""
        report = self.train(step, batch)
        started = time.perf_counter()
        manifest = yield from self.publish()
        metrics = {**report.metrics, "learn/export_s/sum": time.perf_counter() - started}
        spans = tuple(dataclasses.replace(span, end_s=time.time()) for span in report.spans)
        return dataclasses.replace(report, metrics=dict(sorted(metrics.items())), spans=spans), manifest

    def train(self, step: int, batch: BatchT) -> StepReport:
        """One committed update of version `step`.

        Raises RunFailedError when the batch has nothing to train on, when losses or gradients were not finite more
        often in a row than the configuration allows, and when the policy has left its reference: always before the
        optimiser moves a weight.
        """
        if step != self.version:
            raise ValueError(f"step {step} was given to a learner at version {self.version}")
        started, clock = time.time(), time.perf_counter()
        self._attested = None
        context = self.context(step)
        prepared = self.objective.completed(batch, self.objective.prepare(batch, context), context)
        # Numbers that a device computes may differ in their last bits; those that arrived with the batch may not.
        batch_digest = [(group.ordinal, group.attempt, group.rewards_G) for group in prepared.groups]
        self._agreement.require({"the step": step, "its batch": batch_digest})
        self.objective.require_close(prepared.metrics, step)
        ready = time.perf_counter()
        metrics = {**prepared.metrics, **self._updates(step, prepared)}
        self.version = step + 1
        self._agreement.record()
        metrics["learning_rate/mean"] = self._peak * self._schedule(step)
        metrics["prepare_s/sum"] = ready - clock
        metrics["update_s/sum"] = time.perf_counter() - ready
        span = Span(lane="learn", worker=self.name, name=f"step {step}", start_s=started, end_s=time.time())
        named = {f"learn/{key}": value for key, value in sorted(metrics.items())}
        moved = metrics["skipped/share"] < 1
        if not self.objective.ranks.is_alone:
            return_freed_memory()
        return StepReport(step=step, metrics=named, spans=(span,), groups=prepared.groups, moved=moved)

    def raise_kl(self, factor: float) -> float:
        """Multiply the weight of the KL to the reference, from the next step on; returns the new one."""
        return self.objective.raise_kl(factor)

    def save(self, directory: str | Path) -> None:
        """Write the present state (`stage`, `write`)."""
        self.stage(copies=False)
        self.write(directory)

    def stage(self, *, copies: bool = True) -> None:
        """Take the present state for `write`, in place of an earlier one. copies: it is copied to host memory, and
        steps may run before it is written. The next step may compute its gradients before the copy is complete."""
        self._staged = None
        staging = Staging(self.objective.ranks, copies=copies)
        tensors = {name: staging.keep(tensor) for name, tensor in tensors_of(self.optimizers).items()}
        counters = {"version": self.version, "seed": self._seed, **self.objective.counters()}
        files = None if self._publisher is None else self._publisher.files(staging.keep, self._attested)
        staging.begin()
        self._staged = Staged(staging, tensors, counters, files)

    def write(self, directory: str | Path) -> None:
        """Write the staged networks and their optimisers, exact to the bit; where a policy is published also
        `policy/`, a Hugging Face directory in the serving dtype, and canaries that attest it. May run in a thread
        beside `step` if it was staged with copies. After an error it may be called again."""
        staged = self._staged
        if staged is None:
            raise ValueError("nothing is staged, expected a state to write; call stage() first")
        staged.write(Path(directory), self._publisher, self.objective.ranks)
        if self._staged is staged:
            self._staged = None

    def load(self, directory: str | Path) -> None:
        """Continue from a checkpoint of a learner with the same model and configuration. Raises InputError when it
        does not fit."""
        self._staged = self._attested = None
        counters = load_state(Path(directory), self.optimizers)
        self._agreement.forget()
        self.version = int(counters["version"])
        self.objective.restore(counters)

    def context(self, step: int) -> StepContext[MicrobatchT]:
        """The context in which the objective prepares a step."""

        def update(
            minibatch: Minibatch[MicrobatchT], loss: Callable[[MicrobatchT, float], Iterator[Loss]], part: str
        ) -> None:
            sums = self._backward(minibatch, loss)
            norms = self._clip_gradients(step, sums, (part,))
            if norms is not None:
                self._move(part, step, norms[part])

        return StepContext(step=step, seed=self._seed, update=update)

    def _updates(self, step: int, prepared: Prepared[MicrobatchT]) -> dict[str, float]:
        """All optimiser steps on a batch; returns the means of their metrics."""
        totals: dict[str, list[Tensor]] = defaultdict(list)
        norms: dict[str, list[float]] = defaultdict(list)
        moved: dict[str, list[bool]] = defaultdict(list)
        main, bad = next(iter(self.optimizers)), list[bool]()
        for minibatch in prepared.minibatches:
            sums = self._backward(minibatch, self.objective.loss)
            found = self._clip_gradients(step, sums, tuple(self.optimizers))
            bad.append(found is None)
            for part in self.optimizers:
                prefix = "" if part == main else f"{part}_"
                norms[f"{prefix}grad_norm"].append(math.nan if found is None else found[part])
                moved[f"{prefix}skipped"].append(found is not None and self._move(part, step, found[part]))
            for key, value in sums.items():
                totals[key].append(value)
        metrics = {key: float(torch.stack(values).mean()) for key, values in totals.items()}
        metrics["not_finite/share"] = sum(bad) / max(1, len(bad))
        metrics |= {f"{key}/mean": sum(values) / len(values) for key, values in norms.items()}
        metrics |= {f"{key}/max": max(values) for key, values in norms.items()}
        metrics |= {f"{key}/share": 1 - sum(values) / len(values) for key, values in moved.items()}
        return metrics

    def _backward(
        self, minibatch: Minibatch[MicrobatchT], loss: Callable[[MicrobatchT, float], Iterator[Loss]]
    ) -> Metrics:
        """Accumulate the gradients of a minibatch; returns the sums of its metrics.

        Every rank takes as many passes as the others; the result of one without a turn of its own is multiplied by 0.
        """
        sums: Metrics = {}
        microbatches, ranks, wrong = minibatch.microbatches, self.objective.ranks, -1
        for place, counts in ranks.turns([self.objective.cost(one) for one in microbatches]):
            is_finite = self._pass(loss(microbatches[place], minibatch.denominator), sums, counts=counts)
            if not (is_finite or wrong >= 0 or ranks.is_alone):
                wrong = place
        if ranks.is_alone:
            return sums
        columns = list(zip(*ranks.each([*map(float, sums.values())]), strict=True))
        blame(ranks, wrong, lambda place: self._pass(loss(microbatches[place], minibatch.denominator), {}, counts=True))
        return {key: torch.tensor(sum(column)) for key, column in zip(sums, columns, strict=True)}

    def _pass(self, terms: Iterator[Loss], sums: Metrics, *, counts: bool) -> bool:
        """Differentiate the loss of a microbatch and add its metrics. Among ranks, returns whether losses and gradients
        of this one are finite."""
        is_finite = True
        for term, metrics in terms:
            (term if counts else term * 0.0).backward()  # type: ignore[no-untyped-call]
            for key, value in metrics.items():
                value = value if counts else torch.zeros_like(value)
                sums[key] = sums[key] + value if key in sums else value
            if not self.objective.ranks.is_alone:
                is_finite &= math.isfinite(float(term.detach()))
        return self._agreement.gradients_are_finite() and is_finite

    def _move(self, part: str, step: int, norm: float) -> bool:
        """Take one optimiser step, unless the gradient is exactly 0; returns whether it was taken.

        Where every token is masked or no answer is better than another, the gradient is exactly 0. A step would still
        move the parameters, because Adam keeps momentum from earlier batches.
        """
        if norm == 0:
            self.optimizers[part].clear()
            return False
        if self._staged is not None:
            self._staged.staging.wait()
        self.optimizers[part].apply(step)
        return True

    def _clip_gradients(self, step: int, losses: Mapping[str, Tensor], parts: Sequence[str]) -> dict[str, float] | None:
        """Bound the gradients and return their norms; None: something is not finite, and the step is left out. Raises
        RunFailedError when that happened too often in a row."""
        norms = {part: self.optimizers[part].clip() for part in parts}
        broken = {key: float(value) for key, value in losses.items() if not math.isfinite(float(value))}
        broken |= {f"{part} gradient norm": norm for part, norm in norms.items() if not math.isfinite(norm)}
        if broken:
            where = [f"{part}: {name}" for part in parts for name in self.optimizers[part].not_finite()][:3]
            for part in parts:
                self.optimizers[part].clear()
            self._bad += 1
            if self._bad <= self._most_bad:
                return None
            before = f" {self._bad} times in a row" if self._bad > 1 else ""
            raise RunFailedError(
                f"learning stopped at step {step} before its optimiser moved: not finite{before} are "
                f"{', '.join(f'{key} ({value})' for key, value in broken.items())}"
                f"{', first in ' + ', '.join(where) if where else ''}; {self.objective.remedy}"
            )
        self._bad = 0
        return norms
