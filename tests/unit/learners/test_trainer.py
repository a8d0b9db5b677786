"""The training loop, on lines through points: compared with a plain loop, and its refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from learners.build import build_learner
from learners.config import LearnConfig
from learners.core.config import OptimizerConfig, Schedule, TrainerConfig
from learners.core.course import CourseConfig, run_course
from learners.core.objective import Loss, Minibatch, Objective, Part, Prepared, StepContext
from learners.core.trainer import Trainer
from solon.errors import RunFailedError
from solon.records import TrainingGroup
from tests.unit.learner_builders import make_group, random_groups, write_llama

Point = tuple[float, float]
CONFIG = OptimizerConfig(learning_rate=0.1, max_grad_norm=0.5, weight_decay=0.1)
RATES = Schedule(shape="linear", steps=10, warmup=2)


class Lines(Objective[Sequence[Point], Sequence[Point]]):
    """Two lines, each with an optimiser of its own: one through the points, one through their mirror images."""

    def __init__(self, *, pairs: int = 2, mirror_weight: float = 1.0, warm_up: bool = False) -> None:
        torch.manual_seed(0)
        self.line, self.mirror = nn.Linear(1, 1), nn.Linear(1, 1)
        self.pairs, self.mirror_weight, self.warm_up = pairs, mirror_weight, warm_up
        self.history: list[str] = []
        self.line.weight.register_hook(lambda _: self.history.append("backward"))

    def parts(self) -> dict[str, Part]:
        return {"line": Part(self.line, 0.1), "mirror": Part(self.mirror, 0.2)}

    def prepare(self, batch: Sequence[Point], context: StepContext[Sequence[Point]]) -> Prepared[Sequence[Point]]:
        pieces = [batch[i : i + self.pairs] for i in range(0, len(batch), self.pairs)]
        if self.warm_up:
            context.update(Minibatch(pieces, len(batch)), self.mirror_loss, "mirror")
        return Prepared(minibatches=[Minibatch(pieces, len(batch))], metrics={"points/sum": float(len(batch))})

    def loss(self, microbatch: Sequence[Point], denominator: float) -> Iterator[Loss]:
        yield squared(self.line, microbatch, denominator, 1.0), {}
        self.history.append("second term")
        yield from self.mirror_loss(microbatch, denominator)

    def mirror_loss(self, microbatch: Sequence[Point], denominator: float) -> Iterator[Loss]:
        loss = self.mirror_weight * squared(self.mirror, microbatch, denominator, -1.0)
        yield loss, {"loss/mean": loss.detach()}


def squared(line: nn.Linear, points: Sequence[Point], denominator: float, sign: float) -> Tensor:
    x, y = torch.tensor(points).T
    return (line(x[:, None])[:, 0] - sign * y).square().sum() / denominator


def points(number: int = 6) -> list[Point]:
    return [(float(i), 2.0 * i - 1.0) for i in range(number)]


def trainer_of(objective: Lines) -> Trainer[Sequence[Point], Sequence[Point]]:
    return Trainer(objective, CONFIG, schedule=RATES, seed=0)


def parameters(objective: Lines) -> list[Tensor]:
    return [p.detach().clone() for module in (objective.line, objective.mirror) for p in module.parameters()]


def test_the_trainer_is_a_plain_loop_of_adamw_with_clipping_and_a_schedule():
    objective, plain = Lines(pairs=6), Lines()
    trainer = trainer_of(objective)
    adams = [
        torch.optim.AdamW(
            [{"params": [module.weight]}, {"params": [module.bias], "weight_decay": 0.0}],
            lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True,
        )
        for module, rate in ((plain.line, 0.1), (plain.mirror, 0.2))
    ]  # fmt: skip
    for step in range(6):
        report = trainer.train(step, points())
        factor = (step + 1) / 2 if step < 2 else 0.1 + 0.9 * (1 - (step - 2) / 8)
        for adam, module, sign, rate in zip(adams, (plain.line, plain.mirror), (1.0, -1.0), (0.1, 0.2), strict=True):
            squared(module, points(), 6, sign).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            for group in adam.param_groups:
                group["lr"] = rate * factor
            adam.step()
            adam.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(parameters(objective), parameters(plain), strict=True))
        assert report.metrics["learn/learning_rate/mean"] == pytest.approx(0.1 * factor)
    assert report.metrics["learn/points/sum"] == 6
    assert report.metrics["learn/grad_norm/max"] > 0.5 < report.metrics["learn/mirror_grad_norm/max"]


def test_microbatches_add_up_to_one_large_batch():
    found = []
    for pairs in (1, 2, 6):
        objective = Lines(pairs=pairs)
        report = trainer_of(objective).train(0, points())
        found.append((parameters(objective), report.metrics["learn/loss/mean"]))
    for tensors, loss in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-6)
        for one, other in zip(tensors, found[0][0], strict=True):
            torch.testing.assert_close(one, other)


def test_a_term_is_differentiated_before_the_next_is_computed():
    objective = Lines(pairs=3)
    trainer_of(objective).train(0, points())
    assert objective.history == ["backward", "second term"] * 2


def test_a_part_whose_gradient_is_exactly_zero_is_left_alone_and_counted():
    objective = Lines()
    trainer = trainer_of(objective)
    trainer.train(0, points())
    before = parameters(objective)
    objective.mirror_weight = 0.0
    report = trainer.train(1, points())
    assert (report.metrics["learn/skipped/share"], report.metrics["learn/mirror_skipped/share"]) == (0.0, 1.0)
    assert report.moved
    after = parameters(objective)
    assert not torch.equal(after[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(after[2:], before[2:], strict=True))


def test_a_network_may_learn_before_the_batch_is_prepared_and_alone():
    objective, plain = Lines(warm_up=True), Lines()
    before = parameters(objective)
    trainer = trainer_of(objective)
    objective.prepare(points(), trainer.context(0))
    after = parameters(objective)
    assert all(torch.equal(a, b) for a, b in zip(after[:2], before[:2], strict=True))
    assert not torch.equal(after[2], before[2])
    trainer_of(plain).train(0, points())
    assert torch.equal(after[2], parameters(plain)[2])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nothing_moves_when_anything_is_not_finite(broken: float):
    objective = Lines(mirror_weight=broken)
    before = parameters(objective)
    with pytest.raises(RunFailedError, match=r"step 0 before its optimiser moved.*mirror.*lower learning_rate"):
        trainer_of(objective).train(0, points())
    assert all(torch.equal(a, b) for a, b in zip(parameters(objective), before, strict=True))


def test_a_saved_state_continues_equal_to_the_bit(tmp_path: Path):
    objective = Lines()
    trainer = trainer_of(objective)
    for step in range(2):
        trainer.train(step, points())
    trainer.save(tmp_path)
    trainer.train(2, points())
    other = Lines()
    resumed = trainer_of(other)
    resumed.load(tmp_path)
    assert resumed.version == 2
    resumed.train(2, points())
    assert all(torch.equal(a, b) for a, b in zip(parameters(objective), parameters(other), strict=True))
    assert not (tmp_path / "policy").exists()


def test_a_trainer_without_a_policy_publishes_nothing():
    with pytest.raises(ValueError, match="Lines publishes nothing"):
        trainer_of(Lines()).initial_weights()


def test_a_course_passes_over_its_examples_in_an_order_that_the_seed_decides():
    seen: dict[int, list[Any]] = {}
    for seed in (0, 0, 1):
        objective = Lines()
        prepare, batches = objective.prepare, []
        objective.prepare = lambda batch, context, p=prepare, b=batches: b.append(batch) or p(batch, context)
        report = run_course(objective, points(5), CourseConfig(learning_rate=0.1, epochs=2, batch=2, seed=seed))
        assert report.steps == 6
        assert seen.setdefault(seed, batches) == batches
        for epoch in (batches[:3], batches[3:]):
            assert sorted(point for batch in epoch for point in batch) == points(5)
    assert seen[0] != seen[1]
    assert report.last_loss < report.first_loss


def test_a_checkpoint_of_ppo_has_the_names_that_earlier_versions_wrote(tmp_path: Path):
    (tmp_path / "model").mkdir()
    learner = build_learner(LearnConfig(), model=write_llama(tmp_path / "model"), temperature=1.0, seed=5)
    learner.step(0, random_groups())
    learner.save(tmp_path / "saved")
    names = set(load_file(tmp_path / "saved" / "learner.safetensors"))
    assert {tuple(name.split("/")[:2]) for name in names} == {
        (part, kind) for part in ("policy", "critic") for kind in ("parameter", "step", "exp_avg", "exp_avg_sq")
    }
    assert {"policy/parameter/model.norm.weight", "critic/exp_avg/backbone.norm.weight"} <= names
    assert {"critic/parameter/head.weight", "policy/step/model.layers.0.self_attn.q_proj.weight"} <= names
    assert (tmp_path / "saved" / "learner.json").read_text() == (
        '{\n "version": 1,\n "seed": 5,\n "kl_coefficient": 0.02,\n "kl_configured": 0.02\n}\n'
    )


class Once(Lines):
    """Its loss is not finite on chosen steps."""

    def __init__(self, *broken: int) -> None:
        super().__init__()
        self.broken, self.steps = broken, -1

    def prepare(self, batch: Sequence[Point], context: StepContext[Sequence[Point]]) -> Prepared[Sequence[Point]]:
        self.steps = context.step
        return super().prepare(batch, context)

    def mirror_loss(self, microbatch: Sequence[Point], denominator: float) -> Iterator[Loss]:
        factor = math.nan if self.steps in self.broken else 1.0
        for loss, metrics in super().mirror_loss(microbatch, denominator):
            yield loss * factor, metrics


def patient(objective: Objective[Any, Any], most: int) -> Trainer[Any, Any]:
    config = TrainerConfig(learning_rate=0.1, max_bad_steps=most)
    return Trainer(objective, config, schedule=RATES, seed=0)


def test_a_step_that_is_not_finite_is_left_out_counted_and_does_not_touch_the_next_ones():
    objective, plain = Once(1), Lines()
    trainer, other = patient(objective, 2), patient(plain, 2)
    trainer.train(0, points())
    before = parameters(objective)
    report = trainer.train(1, points())
    assert all(torch.equal(a, b) for a, b in zip(parameters(objective), before, strict=True))
    assert report.metrics["learn/not_finite/share"] == report.metrics["learn/skipped/share"] == 1
    assert not report.moved
    assert trainer.train(2, points()).metrics["learn/not_finite/share"] == 0
    other.train(0, points())
    other.version = 2
    other.train(2, points())
    assert all(torch.equal(a, b) for a, b in zip(parameters(objective), parameters(plain), strict=True))


def test_too_many_in_a_row_end_the_run_and_a_good_one_between_them_starts_the_count_again():
    trainer = patient(Once(0, 1, 3, 4, 5), 2)
    for step in range(5):
        trainer.train(step, points())
    with pytest.raises(RunFailedError, match="step 5 before its optimiser moved: not finite 3 times in a row"):
        trainer.train(5, points())


@torch.no_grad()
def own_answers(network: Any, ordinal: int) -> TrainingGroup:
    """Answers that the network samples, with their log-probs."""
    generator, answers, logprobs = torch.Generator().manual_seed(ordinal), [], []
    for _ in range(3):
        ids, told = [5, 6], list[float]()
        for _ in range(6):
            row_V = network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(torch.multinomial(row_V.exp(), 1, generator=generator)))
            told.append(float(row_V[ids[-1]]))
        answers.append(ids[2:])
        logprobs.append(told)
    return make_group(ordinal, [5, 6], answers, [0.0, 1.0, 2.0], logprobs=logprobs)


@pytest.mark.parametrize("objective", ["ppo", "group_relative", "online_dpo"])
def test_a_policy_that_has_left_its_reference_ends_the_run_before_it_moves(tmp_path: Path, objective: str):
    learner = build_learner(
        LearnConfig(objective=objective, kl_limit=0.5), model=write_llama(tmp_path), temperature=1.0, seed=0
    )
    network = learner.objective.policy.model  # type: ignore[attr-defined]
    learner.train(0, [own_answers(network, ordinal) for ordinal in range(4)])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    groups, before = [own_answers(network, ordinal) for ordinal in range(4)], learner.initial_weights().fingerprint
    with pytest.raises(RunFailedError, match=r"nats a token away from its reference, learn.kl_limit = 0.5"):
        learner.train(1, groups)
    assert learner.initial_weights().fingerprint == before
