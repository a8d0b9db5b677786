"""A model that cannot be loaded is the user's mistake, wherever it shows: one line, exit code 2."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from pydantic import BaseModel, ValidationError

from actors.judge import RemoteJudge
from actors.learner import RemoteLearner
from actors.rollout import RemoteRollout
from learners.config import LoraConfig
from solon.cli import main as command
from solon.engines.base import EngineConfig
from solon.engines.build import build_engine
from solon.engines.chat_settings import ChatSettings
from solon.errors import InputError, RunFailedError, first_cause, loading
from solon.feedback.selection.policy import SelectionConfig
from solon.files.validation import describe_invalid
from solon.recovery.startup import start
from tests.unit.run_files import make_model

CAUSE = InputError("the policy '/m' cannot be loaded (KeyError: 'nonsense'); check it")


class DeadOnArrival:
    """An actor whose `start` raises the given error, in the form in which Ray passes it on."""

    def __init__(self, error: Exception) -> None:
        self.start = self
        self._error = pickle.loads(pickle.dumps(error))

    @property
    def __ray_ready__(self) -> Any:
        async def there() -> None: ...

        return SimpleNamespace(remote=there)

    def options(self, *, num_returns: int | str) -> DeadOnArrival:
        return self

    def remote(self, *arguments: Any) -> Any:
        async def answer() -> None:
            raise ray.exceptions.RayTaskError("start", "Traceback", self._error).as_instanceof_cause()

        async def stream() -> AsyncIterator[Any]:
            yield answer()

        return stream() if arguments else answer()


LANES = [
    lambda spawn: RemoteLearner(spawn, name="learner"),
    lambda spawn: RemoteJudge(spawn, name="judge-0", groups_at_once=1),
    lambda spawn: RemoteRollout(spawn, name="rollout-0", groups_at_once=1),
]


@pytest.mark.parametrize("lane", LANES)
def test_bad_input_raised_in_an_actors_start_keeps_its_type_and_ends_with_exit_code_2(
    lane: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    worker = lane(lambda made: DeadOnArrival(CAUSE))
    arguments = ("",) if isinstance(worker, RemoteLearner) else ()

    async def launch() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(start(worker, *arguments, emit=lambda *_, **__: None))
        except ExceptionGroup as failures:
            raise first_cause(failures) from None

    monkeypatch.setattr(command, "app", lambda **_: asyncio.run(launch()))
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert str(CAUSE) in shown
    assert "Traceback" not in shown


class StrangeError(Exception):
    """Of no common class, and it cannot be sent to another process."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


@pytest.mark.parametrize("error", [KeyError("nonsense"), TypeError("x"), AssertionError(), StrangeError("a", "b")])
def test_any_error_of_a_library_while_loading_becomes_bad_input_that_can_be_pickled(error: Exception):
    with pytest.raises(InputError) as caught, loading("judge-0: the model '/m'", remedy="check it"):
        raise error
    assert str(caught.value).startswith(f"judge-0: the model '/m' cannot be loaded ({type(error).__name__}: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_out_of_memory_is_not_bad_input_and_our_own_errors_are_kept():
    with pytest.raises(RunFailedError, match="does not fit into memory"), loading("it", remedy="check it"):
        raise MemoryError
    for error in (CAUSE, RunFailedError("gone")):
        with pytest.raises(type(error)) as caught, loading("it", remedy="check it"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("change", ['"hidden_act": "nonsense"', '"rope_parameters": {"rope_type": "foo"}'])
def test_a_model_that_crashes_the_library_is_refused_by_learner_and_engine(tmp_path: Path, change: str):
    import torch

    from learners.core.loading import load_model, refuse_experts

    model = make_model(tmp_path / "model")
    config = model / "config.json"
    config.write_text(config.read_text().rstrip()[:-1] + f", {change}}}")
    refuse_experts(str(model))
    with pytest.raises(InputError, match=f"the policy '{model}' cannot be loaded"):
        load_model(str(model), torch.device("cpu"))
    with pytest.raises(InputError, match=str(model)):
        build_engine(EngineConfig(model=str(model), backend="transformers"), name="judge-0")


@pytest.mark.parametrize(
    ("section", "value", "told"),
    [
        (ChatSettings, {"thinking": "on"}, "`thinking` got 'on', expected 'auto', 'off' or { start = …, end = … }"),
        (ChatSettings, {"thinking": 3}, "`thinking` got 3, expected 'auto', 'off' or { start = …, end = … }"),
        (ChatSettings, {"thinking": {"start": "<a>"}}, "`thinking.end` is missing; it is required"),
        (LoraConfig, {"target_modules": 3}, "`target_modules` got 3, expected text or a list"),
        (SelectionConfig, {"policy": "all"}, "`policy` got 'all', expected "),
    ],
)
def test_a_value_of_none_of_its_kinds_is_one_mistake_without_the_labels_of_a_library(
    section: type[BaseModel], value: dict[str, Any], told: str
):
    with pytest.raises(ValidationError) as caught:
        section.model_validate(value)
    shown = describe_invalid(section, caught.value)
    assert shown.startswith(told)
    assert "literal" not in shown
    assert ";" not in shown.removeprefix(told)
