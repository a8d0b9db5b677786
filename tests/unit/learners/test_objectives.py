"""A new objective is one new file, and `learn.objective` selects the objective."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.learner import LearnerShell
from cluster.config.sections import LearnSection
from learners import objectives
from learners.config import LearnConfig
from learners.objectives import find, find_for_policy, names
from learners.objectives.group_relative import GroupRelativeObjective
from learners.objectives.ppo import PPOObjective
from solon.errors import InputError
from solon.records import Sampling
from tests.unit.learner_builders import random_groups, write_llama

TOY = '''
"""The likelihood of answers with a reward above 0."""

import torch

from learners.core.objective import Prepared
from learners.core.policy_objective import PolicyObjective


class Likelihood(PolicyObjective):
    def prepare(self, batch, context):
        arrays = self.batch_of(batch)
        self.wanted_N = torch.from_numpy(arrays.reward_R[arrays.rollout_N] > 0)
        return Prepared(minibatches=self.minibatches(arrays, context))

    def loss(self, microbatch, denominator):
        logprobs_M = self.policy.logprobs(microbatch)
        loss = -logprobs_M[self.wanted_N[microbatch.index_M]].sum() / denominator
        yield loss, {"likelihood_loss/mean": loss.detach()}
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One new file in the folder of the objectives, and nothing else."""
    (tmp_path / "objectives").mkdir()
    (tmp_path / "objectives" / "likelihood.py").write_text(TOY)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(tmp_path / "objectives")])
    monkeypatch.delitem(sys.modules, "learners.objectives.likelihood", raising=False)
    return "likelihood"


def payloads(step: int) -> list[Any]:
    """As they come out of the object store: group, feedback, group, feedback, ..."""
    return [part for one in random_groups(version=step) for part in (one.group, one.feedback)]


def test_a_new_objective_is_one_new_file_that_a_run_names_trains_with_and_resumes(toy: str, tmp_path: Path):
    (tmp_path / "model").mkdir()
    model = write_llama(tmp_path / "model")
    config = LearnConfig(objective=toy, learning_rate=5e-3, minibatches=1)

    def shell() -> LearnerShell:
        return LearnerShell(config, model=model, sampling=Sampling(max_tokens=8), seed=0, name="learner-0")

    learner = shell()
    *chunks, manifest = learner.start("")
    assert (manifest.version, len(manifest.chunks), len(chunks)) == (0, 0, 1)
    losses, fingerprints = [], {manifest.fingerprint}
    for step in range(4):
        *_, (report, manifest) = learner.step(step, *payloads(step))
        losses.append(report.metrics["learn/likelihood_loss/mean"])
        assert {"learn/reward/mean", "learn/staleness/max", "learn/tokens/sum"} <= report.metrics.keys()
        assert [group.rewards_G for group in report.groups] == [
            one.feedback.rewards_G for one in random_groups(version=step)
        ]
        fingerprints.add(manifest.fingerprint)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert len(fingerprints) == 5
    assert manifest.version == 4
    learner.stage(True)
    learner.write(str(tmp_path / "saved"))
    resumed = shell()
    assert list(resumed.start(str(tmp_path / "saved")))[-1].version == 4
    expected, again = (list(one.step(4, *payloads(4)))[-1][1].fingerprint for one in (learner, resumed))
    assert again == expected


def test_an_objective_without_a_kl_refuses_to_raise_one(toy: str, tmp_path: Path):
    learner = LearnerShell(
        LearnConfig(objective=toy), model=write_llama(tmp_path), sampling=Sampling(max_tokens=8), seed=0, name="l"
    )
    list(learner.start(""))
    with pytest.raises(ValueError, match="Likelihood has no KL"):
        learner.raise_kl(2.0)


def test_every_file_of_the_folder_is_an_objective():
    assert names() == ["distil", "dpo", "group_relative", "kto", "online_dpo", "ppo", "reward_model"]
    for name in names():
        assert find(name).__module__ == f"learners.objectives.{name}"


def test_a_misspelt_objective_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean `group_relative`"):
        find("group_relativ")


def test_an_objective_that_learns_from_other_data_does_not_train_a_run():
    with pytest.raises(InputError, match="'reward_model' does not train a policy on labelled rollouts"):
        find_for_policy("reward_model")


@pytest.mark.parametrize(
    ("given", "advantages", "objective"),
    [
        ({}, "gae", PPOObjective),
        ({"advantages": "gae"}, "gae", PPOObjective),
        ({"advantages": "group"}, "group", GroupRelativeObjective),
        ({"objective": "ppo"}, "gae", PPOObjective),
        ({"objective": "group_relative"}, "group", GroupRelativeObjective),
        ({"objective": "group_relative", "advantages": "group"}, "group", GroupRelativeObjective),
    ],
)
def test_the_objective_follows_from_advantages_and_advantages_from_the_objective(
    given: dict[str, Any], advantages: str, objective: type
):
    config = LearnConfig(**given)
    assert config.advantages == advantages
    assert find_for_policy(config.objective_name) is objective
    assert LearnConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objective": "ppo", "advantages": "group"}, "belong to 'group_relative'"),
        ({"objective": "group_relative", "advantages": "gae"}, "belong to 'ppo'"),
        ({"objective": "group_relative", "value_clip": 0.2}, "has no critic"),
        ({"objective": "gpo"}, "expected one of group_relative, online_dpo, ppo"),
        ({"objective": "distil"}, "does not train a policy on labelled rollouts"),
    ],
)
def test_an_objective_that_contradicts_or_does_not_exist_is_refused(given: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        LearnConfig(**given)


def test_naming_a_built_in_objective_loads_no_torch():
    code = (
        "import sys; from learners.config import LearnConfig; LearnConfig(objective='group_relative').objective_name; "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_file_names_its_objective_and_one_without_it_is_as_before(toy: str):
    assert LearnSection(objective=toy, learning_rate=1e-3).objective_name == toy
    old = {key: value for key, value in LearnSection(advantages="group").model_dump().items() if key != "objective"}
    assert LearnSection(**old) == LearnSection(advantages="group")
