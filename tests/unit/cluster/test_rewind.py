"""Going back to an earlier checkpoint: which one, which settings may change, and what happens to the later ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.saving import restore_ledger
from cluster.start import Start, find_start
from learners.config import LoraConfig
from solon.checkpoints.folder import Checkpoint, CheckpointFolder
from solon.checkpoints.remote import download, go_back, upload
from solon.errors import InputError
from solon.feedback.watching.watch_state import WatchState
from solon.ledger.async_ledger import AsyncLedger
from solon.ledger.conservation import account
from solon.ledger.ledger import LedgerConfig
from solon.ledger.snapshot import State
from solon.ledger.staleness import StalenessConfig
from solon.runs.directory import RunDirectory
from tests.unit.checkpoints.test_checkpoints import make_cut, write
from tests.unit.cluster.test_start import HASH, begun, start_of
from tests.unit.fakes import make_group
from tests.unit.feedback.test_watching import make_feedback, make_window
from tests.unit.run_files import make_run

ALARM = {"kind": "gold_falls", "step": 34, "message": "gold falls by 0.02 nats a step", "action": "stop"}
GOLD = ((2.0, 0.1), (11.0, 0.6), (21.0, 0.9), (31.0, 0.2))
"""Step and gold of the windows of a run that was fooled."""


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    return RunFile.load(make_run(tmp_path))


def fooled(root: Path, run: RunFile, *, stopped_by: Any = ALARM) -> RunDirectory:
    """A run with checkpoints of steps 10, 20, 30 and 35, at which it was stopped."""
    directory = begun(root, run)
    folder = CheckpointFolder(directory.path / "checkpoints", keep=0)
    for step in (10, 20, 30, 35):
        windows = tuple(make_window(*one) for one in GOLD if one[0] <= step)
        watch = WatchState(windows=windows).to_json()
        write(folder, step, run={"watch": watch, "stopped_by": stopped_by if step == 35 else None})
    return directory


def back(root: Path, run: RunFile, to: str, **given: Any) -> Start:
    return find_start(run, HASH, root=root, name="night", default="run", resume=True, back_to=to, **given)


def changed(run: RunFile, **learn: Any) -> RunFile:
    return run.model_copy(update={"learn": run.learn.model_copy(update=learn)})


@pytest.mark.parametrize(("to", "step"), [("best", 20), ("10", 10), ("30", 30), ("35", 35)])
def test_a_run_goes_back_to_the_checkpoint_that_gold_liked_best_or_to_that_of_a_step(
    tmp_path: Path, run: RunFile, to: str, step: int
):
    fooled(tmp_path, run)
    start = back(tmp_path, run, to)
    assert (start.step, start.goes_back, start.changed) == (step, True, {})


@pytest.mark.parametrize(("until", "step"), [(35, 20), (20, 20), (19, 10)])
def test_a_checkpoint_from_after_the_collapse_is_not_the_best_even_if_gold_likes_it(
    tmp_path: Path, run: RunFile, until: int, step: int
):
    fooled(tmp_path, run, stopped_by=ALARM | {"kind": "collapse", "sound_until": until})
    assert back(tmp_path, run, "best").step == step
    with pytest.raises(InputError, match=rf"--from best goes back to step-0000{step}"):
        start_of(tmp_path, run)


def test_without_a_checkpoint_from_before_the_alarm_the_best_one_is_refused(tmp_path: Path, run: RunFile):
    fooled(tmp_path, run, stopped_by=ALARM | {"kind": "collapse", "sound_until": 3})
    with pytest.raises(InputError, match=r"is from before the alarm .*steps 10, 20, 30, 35"):
        back(tmp_path, run, "best")


def test_a_missing_checkpoint_is_refused_with_a_list_of_existing_ones(tmp_path: Path, run: RunFile):
    fooled(tmp_path, run)
    for wrong, said in (("17", "step 17"), ("last", "'last'"), ("-1", "'-1'")):
        with pytest.raises(InputError, match=rf"--from got {said}, expected `best` or the step .*: 10, 20, 30, 35"):
            back(tmp_path, run, wrong)
    with pytest.raises(InputError, match=r"--from best: .*other has no run to go back in"):
        find_start(run, HASH, root=tmp_path, name="other", default="run", resume=True, back_to="best")
    with pytest.raises(InputError, match="--from best goes with --resume"):
        find_start(run, HASH, root=tmp_path, name="night", default="run", resume=False, back_to="best")


def test_a_run_that_was_not_audited_has_no_best_checkpoint_but_steps(tmp_path: Path, run: RunFile):
    begun(tmp_path, run, steps=(10, 20))
    with pytest.raises(InputError, match=r"--from best: .* has no audits to choose by.*: 10, 20"):
        back(tmp_path, run, "best")
    assert back(tmp_path, run, "10").step == 10


def test_a_damaged_best_checkpoint_leaves_the_next_best_one_and_a_damaged_step_is_named(tmp_path: Path, run: RunFile):
    directory = fooled(tmp_path, run)
    (directory.path / "checkpoints" / "step-000020" / "ledger.json").write_text("{}")
    assert back(tmp_path, run, "best").step == 10
    with pytest.raises(InputError, match=r"step-000020: ledger\.json is damaged"):
        back(tmp_path, run, "20")


def test_a_plain_resume_after_an_alarm_is_refused_and_names_both_ways_to_continue(tmp_path: Path, run: RunFile):
    fooled(tmp_path, run)
    with pytest.raises(InputError) as caught:
        start_of(tmp_path, run)
    for words in ("an alarm stopped", "gold_falls: gold falls by 0.02 nats a step",
                  "--from best goes back to step-000020", "--from 35 resumes where it stopped"):  # fmt: skip
        assert words in str(caught.value)


@pytest.mark.parametrize("stopped_by", [None, {"kind": "draining", "message": "x"}, {**ALARM, "kind": "audit_lost"}])
def test_a_run_that_was_stopped_for_another_reason_resumes_normally(tmp_path: Path, run: RunFile, stopped_by: Any):
    fooled(tmp_path, run, stopped_by=stopped_by)
    start = start_of(tmp_path, run)
    assert (start.step, start.goes_back) == (35, False)


def test_later_checkpoints_are_set_aside_and_latest_names_the_one_that_the_run_went_back_to(
    tmp_path: Path, run: RunFile
):
    folder = CheckpointFolder(fooled(tmp_path, run).path / "checkpoints", keep=0)
    (folder.path / ".step-000035.gone").mkdir()
    assert folder.set_aside(after=20) == ["step-000030", "step-000035"]
    assert folder.steps() == [10, 20]
    assert [path.name for path in folder.candidates()] == ["step-000020", "step-000010"]
    assert (folder.path / "LATEST").read_text() == "step-000020\n"
    assert sorted(path.name for path in (folder.path / "aside").iterdir()) == ["step-000030", "step-000035"]
    # Once more, over the existing files.
    write(folder, 30, text="others")
    folder.set_aside(after=20)
    assert (folder.path / "aside" / "step-000030" / "policy" / "model.safetensors").read_text() == "others"
    assert start_of(tmp_path, run).step == 20
    assert folder.set_aside(after=20) == []


def test_a_second_place_for_checkpoints_goes_back_as_well(tmp_path: Path, run: RunFile):
    folder = CheckpointFolder(fooled(tmp_path, run).path / "checkpoints", keep=0)
    url = f"file://{tmp_path}/store"
    for step in folder.steps():
        upload(folder.path / folder.name(step), url)
    folder.set_aside(after=20)
    go_back("step-000020", url)
    assert download(url, folder, whole=20) is None
    assert folder.steps() == [10, 20]


def test_settings_of_reward_and_training_strength_may_change_when_a_run_goes_back_and_are_reported(
    tmp_path: Path, run: RunFile
):
    fooled(tmp_path, run)
    start = back(tmp_path, changed(run, kl_coefficient=0.5), "best")
    assert (start.changed, start.judges_again) == ({"learn.kl_coefficient": [0.02, 0.5]}, False)
    other = run.model_copy(update={"judge": "/another/judge"})
    start = back(tmp_path, other, "best", digests={"judge": "j2", "policy": "p1"})
    assert start.judges_again
    assert start.changed["judge"][1] == "/another/judge"


def test_without_going_back_those_settings_may_not_change_and_the_message_says_how(tmp_path: Path, run: RunFile):
    begun(tmp_path, run, steps=(10,))
    with pytest.raises(InputError, match=r"was 0\.02, is 0\.5; set them back, go back with --from best"):
        start_of(tmp_path, changed(run, kl_coefficient=0.5))


def test_the_model_its_prompts_and_gold_may_not_change_at_all(tmp_path: Path, run: RunFile):
    fooled(tmp_path, run)
    for other, words in (
        (run.model_copy(update={"seed": 3}), "seed was 0, is 3; set them back, or start"),
        (changed(run, lora=LoraConfig(r=4)), r"learn\.lora\.r was not set"),
        (
            run.model_copy(update={"watch": run.watch.model_copy(update={"audit_judge": "x"})}),
            r"watch\.audit_judge was",
        ),
    ):
        with pytest.raises(InputError, match=words):
            back(tmp_path, other, "best")


def test_other_judge_weights_under_the_same_name_are_a_change_and_another_policy_is_refused(
    tmp_path: Path, run: RunFile
):
    directory = fooled(tmp_path, run)
    then = {"judge": "j1", "policy": "p1"}
    write(CheckpointFolder(directory.path / "checkpoints", keep=0), 10, run={"inputs": then})
    start = back(tmp_path, run, "10", digests={"judge": "j2", "policy": "p1"})
    assert start.judges_again
    assert start.changed == {"judge (judge)": ["j1", "j2"]}
    with pytest.raises(InputError, match=r"policy .* has other weights"):
        back(tmp_path, run, "10", digests=then | {"policy": "p2"})


@pytest.mark.parametrize(("again", "state"), [(False, "ready"), (True, "generated")])
async def test_labels_of_a_former_judge_are_made_again_instead_of_trained(
    tmp_path: Path, run: RunFile, monkeypatch: pytest.MonkeyPatch, again: bool, state: str
):
    monkeypatch.setattr("cluster.saving.put_payload", lambda payload: payload)
    group = make_group(19, texts=["a", "b"])
    cut = make_cut(19)
    ready = cut.entries[0].model_copy(update={"state": State.READY})
    checkpoint = checkpoint_of(cut.model_copy(update={"entries": (ready,)}), {19: (group, make_feedback(group, 1.0))})
    ledger = AsyncLedger(LedgerConfig(batch_groups=1), StalenessConfig(), total_groups=40)
    restore_ledger(ledger, checkpoint, judges_again=again)
    assert (await ledger.counts())[state] == 1


def checkpoint_of(cut: Any, held: Any) -> Any:
    return Checkpoint(path=Path("x"), step=0, ledger=cut, held=held, run={})


def test_the_account_balances_when_a_run_goes_back_over_trained_steps():
    """Steps 2 and 3 are taken back; their groups are trained again under the same numbers."""
    metrics = [{"time": t, "step": s, "batch/ordinals": o} for t, s, o in (
        (1, 0, [0, 1]), (2, 1, [2, 3]), (3, 2, [4, 5]), (4, 3, [6, 7]), (6, 2, [5, 6]), (7, 3, [4, 7]))]  # fmt: skip
    events = [{"time": 5, "event": "resumed", "step": 2, "admitted": 6, "held": [4, 5], "aside": ["step-000004"]}]
    found = account(events, metrics, admitted=8, held=())
    assert found.is_balanced
    assert found.committed == {0: 0, 1: 0, 2: 1, 3: 1, 5: 2, 6: 2, 4: 3, 7: 3}


def test_with_another_judge_the_watch_restarts_and_keeps_the_gold_scores():
    windows = (make_window(2, 0.1), make_window(12, 0.8))
    state = WatchState(windows=windows, raised=frozenset({"gold_falls"}), canary=(1.0,)).for_another_judge()
    assert (state.windows, state.raised, state.canary) == ((), frozenset(), None)
    past = WatchState.from_json(json.loads(json.dumps(state.to_json()))).past
    assert [(window.step, window.gold) for window in past] == [(2, 0.1), (12, 0.8)]
