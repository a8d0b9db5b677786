"""Append-only files: cuts and edits are detected, and `--resume` and `solon doctor` agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config.run_file import RunFile
from cluster.start import Start, find_start
from solon.checkpoints.folder import CheckpointFolder
from solon.doctor.diagnosis import Diagnosis, diagnose
from solon.doctor.facts import look
from solon.errors import InputError
from solon.ledger.conservation import account
from solon.ledger.snapshot import LedgerSnapshot
from solon.runs.directory import RunDirectory
from solon.runs.integrity import Integrity, Records, Running, drop_unplaced, examine, read_records
from solon.runs.quarantine import Quarantine
from solon.runs.tables import rollout_rows
from tests.unit.fakes import make_group
from tests.unit.run_files import make_run

HASH = "constitution"
STEPS = 4


@pytest.fixture
def run(tmp_path: Path) -> RunFile:
    return RunFile.load(make_run(tmp_path))


def make_night(root: Path, run: RunFile, *, is_old: bool = False) -> Path:
    """A run that was killed after its checkpoint of step 4: two groups per step, group 8 held. is_old: the checkpoint
    has no record of the other files."""
    directory = RunDirectory.create(root / "runs", "night", default="run")
    directory.keeps_part_digests = True
    directory.write_json("config.json", {"constitution_hash": HASH} | run.model_dump(mode="json"))
    quarantine = Quarantine(directory)
    quarantine.add(stage="prompts", reason="not UTF-8", line=3)
    directory.append("events.jsonl", {"time": 1.0, "event": "started"})
    for step in range(STEPS):
        for ordinal in (2 * step, 2 * step + 1):
            directory.write_rows("rollouts", [row | outcome(None) for row in rollout_rows(make_group(ordinal))])
        directory.append(
            "metrics.jsonl", {"time": 2.0 + step, "step": step, "batch/ordinals": [2 * step, 2 * step + 1]}
        )
        directory.append("events.jsonl", {"time": 2.5 + step, "event": "published", "version": step + 1})
    quarantine.add(stage="labels", reason="margin is NaN", ordinal=5)
    folder = CheckpointFolder(directory.path / "checkpoints")
    scratch = folder.begin(STEPS)
    (scratch / "model.safetensors").write_text("weights")
    cut = LedgerSnapshot.model_validate({"admitted": 9, "committed": 8, "dropped": {}, "entries": [held(8)]})
    records = directory.sync()
    folder.finish(scratch, step=STEPS, config_hash="", ledger=cut, held=(), run={}, records=None if is_old else records)
    # Later lines and a part that was filled in later: not covered by the checkpoint, and no damage.
    directory.append("events.jsonl", {"time": 9.0, "event": "published", "version": STEPS + 1})
    part = directory.path / "rollouts" / "part-000007.parquet"
    directory.replace_rows(part, pq.read_table(part))
    directory.close()
    return directory.path


def outcome(value: float | None) -> dict[str, float | None]:
    return {"reward": value, "advantage": value, "step": None}


def held(ordinal: int) -> dict[str, object]:
    return {"ordinal": ordinal, "attempt": 0, "state": "pending", "head": 0, "nbytes": 0, "failures": 0, "losses": 0}


def found_in(path: Path) -> Integrity:
    return examine(path, read_records(path / "checkpoints" / f"step-{STEPS:06d}"))


def resume(path: Path, run: RunFile) -> Start:
    return find_start(run, HASH, root=path.parent, name="night", default="run", resume=True)


def doctor(path: Path) -> Diagnosis:
    return diagnose(look(path))


def halve(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step": 1', b'"step": 9').replace(b'"version": 2', b'"version": 7'))


def cut_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def touch_up(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(bytes(content))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "half of metrics.jsonl cut": ("metrics.jsonl", halve, "metrics.jsonl was cut: 2 of 4 lines are there"),
    "half of events.jsonl cut": ("events.jsonl", halve, "events.jsonl was cut: 3 of 5 lines are there"),
    "metrics.jsonl edited": ("metrics.jsonl", edit, "metrics.jsonl was edited: its first 4 lines are not those"),
    "events.jsonl edited": ("events.jsonl", edit, "events.jsonl was edited: its first 5 lines are not those"),
    "metrics.jsonl removed": ("metrics.jsonl", Path.unlink, "metrics.jsonl is missing: it had 4 lines"),
    "a label's refusal removed": ("quarantine.jsonl", Path.unlink, "quarantine.jsonl is missing: it had 1 lines"),
    "a part cut": (
        "rollouts/part-000002.parquet",
        cut_bytes,
        "rollouts/part-000002.parquet cannot be read: ",
    ),
    "a part edited": ("rollouts/part-000002.parquet", touch_up, "rollouts/part-000002.parquet was edited"),
    "a part removed": (
        "rollouts/part-000002.parquet",
        Path.unlink,
        "rollouts/part-000002.parquet is missing: it had 2",
    ),
    "a folder in the place of a part": (
        "rollouts/part-000002.parquet",
        replace_by_folder,
        "rollouts/part-000002.parquet cannot be read: it is no file",
    ),
    "a rewritten part cut": ("rollouts/part-000007.parquet", cut_bytes, "part-000007.parquet cannot be read: "),
    "the list of parts cut": ("parts.jsonl", halve, "parts.jsonl was cut: 4 of 8 lines are there"),
}


def test_untouched_files_are_intact_with_any_lines_after_the_checkpoint(tmp_path: Path, run: RunFile):
    path = make_night(tmp_path, run)
    assert found_in(path) == Integrity(is_recorded=True)
    assert resume(path, run).remarks == []
    assert "records" not in doctor(path).findings


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume_and_doctor_agree_on_a_damaged_file(tmp_path: Path, run: RunFile, damage: str):
    name, do, text = DAMAGES[damage]
    path = make_night(tmp_path, run)
    do(path / name)
    start, diagnosis = resume(path, run), doctor(path)
    assert start.step == STEPS
    assert any(text in line for line in start.remarks), start.remarks
    assert list(diagnosis.findings["records"]) == start.remarks
    assert "--resume continues from step-000004" in start.remarks[-1]
    assert not diagnosis.is_well
    # Neither calls a group lost or counted twice that its checkpoint knows to be trained.
    assert "numbers" not in diagnosis.findings
    assert not any("nothing is lost" in line for line in diagnosis.findings["groups"])
    assert any(line.endswith("--resume") for line in diagnosis.do)
    recovery = run.recovery.model_copy(update={"damaged_records": "refuse"})
    with pytest.raises(InputError, match=r"--resume: .*damaged_records = .continue."):
        resume(path, run.model_copy(update={"recovery": recovery}))


def test_a_checkpoint_without_digests_of_an_older_version_is_no_error(tmp_path: Path, run: RunFile):
    path = make_night(tmp_path, run, is_old=True)
    halve(path / "metrics.jsonl")
    assert resume(path, run).remarks == []
    lines = doctor(path).findings["records"]
    assert lines == ["step-000004 keeps no digests of them: whether lines were cut is not known"]


def test_a_run_resumed_over_cut_lines_still_balances_and_reports_the_loss(tmp_path: Path, run: RunFile):
    path = make_night(tmp_path, run)
    halve(path / "metrics.jsonl")
    start = resume(path, run)
    directory = RunDirectory.reopen(path)
    texts = [damage.text for damage in start.records.damages]
    event = {"time": 20.0, "event": "resumed", "step": STEPS, "admitted": 9, "held": [8], "damaged": []}
    directory.append("events.jsonl", event | {"records": texts, "unlisted": not start.records.has_account})
    directory.append("metrics.jsonl", {"time": 21.0, "step": STEPS, "batch/ordinals": [8, 9]})
    folder = CheckpointFolder(path / "checkpoints")
    scratch = folder.begin(STEPS + 1)
    (scratch / "model.safetensors").write_text("weights")
    cut = LedgerSnapshot(admitted=10, committed=10, dropped={}, entries=())
    folder.finish(scratch, step=STEPS + 1, config_hash="", ledger=cut, held=(), run={}, records=directory.sync())
    groups = {"admitted": 10, "committed": 10, "dropped": 0, "held": 0}
    directory.write_json("summary.json", {"status": "completed", "steps": 5, "groups": groups})
    directory.close()
    found = doctor(path)
    assert found.is_well, found
    assert "numbers" not in found.findings
    (line,) = found.findings["groups"]
    assert "6 trained, 0 dropped, 0 held, 4 trained or dropped as a checkpoint says, whose lines are gone" in line
    assert found.findings["records"] == [
        "when it was resumed from step 4: metrics.jsonl was cut: 2 of 4 lines are there"
    ]


def test_a_group_that_is_lost_after_the_checkpoint_is_lost_though_lines_before_it_are_gone():
    events = [{"time": 5.0, "event": "resumed", "step": 4, "admitted": 9, "held": [8], "unlisted": True}]
    metrics = [{"time": 6.0, "step": 4, "batch/ordinals": [9, 10]}]
    found = account(events, metrics, admitted=11, held=[])
    assert (set(found.unlisted), set(found.lost), set(found.doubled)) == (set(range(8)), {8}, set())
    again = account([*events, events[0] | {"time": 7.0, "unlisted": False}], metrics, admitted=9, held=[8])
    assert set(again.unlisted) == set(range(8))


def test_lines_of_the_earlier_branch_do_not_count_a_vouched_group_twice():
    # The event that took the drop back was among the lines that were cut.
    events = [
        {"time": 1.0, "event": "group_dropped", "ordinal": 1, "reason": "no label"},
        {"time": 5.0, "event": "resumed", "step": 2, "admitted": 4, "held": [], "unlisted": True},
    ]
    metrics = [{"time": 2.0, "step": 0, "batch/ordinals": [0, 1]}, {"time": 3.0, "step": 1, "batch/ordinals": [2, 3]}]
    assert account(events, metrics, admitted=4, held=[]).is_balanced
    assert not account([events[0]], metrics, admitted=4, held=[]).is_balanced


def test_a_process_that_died_before_a_part_took_its_place_leaves_no_damage(tmp_path: Path, run: RunFile):
    path = make_night(tmp_path, run)
    directory = RunDirectory.reopen(path)
    directory.keeps_part_digests = True

    class Killed(BaseException):
        pass

    part, table = path / "rollouts" / "part-000003.parquet", pq.read_table(path / "rollouts" / "part-000003.parquet")

    def die(self: Path, target: Path) -> None:
        (self.parent / "kept").write_bytes(self.read_bytes())
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", die)
        with pytest.raises(Killed):
            directory.replace_rows(part, table.slice(0, 1))
    (path / "rollouts" / "kept").rename(path / "rollouts" / ".part-000003.parquet.tmp")
    directory.close()
    assert not found_in(path).damages
    lines = len((path / "parts.jsonl").read_text().splitlines())
    directory = RunDirectory.reopen(path)
    directory.close()
    assert len((path / "parts.jsonl").read_text().splitlines()) == lines - 1
    assert not (path / "rollouts" / ".part-000003.parquet.tmp").exists()


def test_rows_that_every_start_writes_again_are_not_counted(tmp_path: Path, run: RunFile):
    path = make_night(tmp_path, run)
    directory = RunDirectory.reopen(path)
    quarantine = Quarantine(directory, reread=("prompts", "heldout"))
    assert not found_in(path).damages
    quarantine.add(stage="prompts", reason="not UTF-8", line=3)
    assert not found_in(path).damages
    assert directory.sync().files["quarantine.jsonl"].lines == 1
    directory.close()


def test_large_files_are_skipped_with_a_note_unless_requested(
    tmp_path: Path, run: RunFile, monkeypatch: pytest.MonkeyPatch
):
    path = make_night(tmp_path, run)
    edit(path / "metrics.jsonl")
    monkeypatch.setattr("solon.runs.integrity.HASHED_BYTES", 10)
    records = read_records(path / "checkpoints" / "step-000004")
    found = examine(path, records)
    assert not found.damages
    assert "metrics.jsonl" in found.unread
    assert "8 parts of rollouts and labels" in found.unread
    assert examine(path, records, thorough=True).damages
    halve(path / "metrics.jsonl")  # its size shows it, without reading
    assert "was cut" in examine(path, records).damages[0].text


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b" ") + b"\n"), min_size=1, max_size=8),
    recorded=st.integers(1, 8),
    damaged=st.integers(0, 60),
    cut=st.booleans(),
)
def test_a_changed_beginning_is_always_detected_and_an_unchanged_one_never_reported(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], recorded: int, damaged: int, cut: bool
):
    folder = tmp_path_factory.mktemp("any")
    running = Running("metrics.jsonl")
    for line in lines[:recorded]:
        running.add(line)
    promised, text = b"".join(lines[:recorded]), bytearray(b"".join(lines))
    place = damaged % len(text)
    if cut:
        del text[place:]
    else:
        text[place] ^= 1
    (folder / "metrics.jsonl").write_bytes(bytes(text))
    found = examine(folder, Records(files={"metrics.jsonl": running.extent()}))
    assert bool(found.damages) == (not bytes(text).startswith(promised))


DEEP = b"[" * 200_000
STRANGE = {
    "a part's name holds a NUL byte": b'{"part": "rollouts/p\\u0000", "rows": 1, "bytes": 1, "sha256": "a"}',
    "a part's name is half a character": b'{"part": "rollouts/\\ud800", "rows": 1, "bytes": 1, "sha256": "a"}',
    "a part's name is too long for a file": b'{"part": "' + b"r" * 5000 + b'", "rows": 1, "bytes": 1, "sha256": "a"}',
    "a part has infinitely many rows": b'{"part": "rollouts/p", "rows": 1e999, "bytes": 1, "sha256": "a"}',
    "a part has infinitely many bytes": b'{"part": "rollouts/p", "rows": 1, "bytes": -1e999, "sha256": "a"}',
    "the line is nested deeply": DEEP,
    "the line is nested deeply in a field": b'{"stage": ' + DEEP,
    "the line is not UTF-8": b'{"stage": "\xff", "reason": "\xff", "count": 1}',
}


@pytest.mark.parametrize("name", ["parts.jsonl", "quarantine.jsonl", "metrics.jsonl", "events.jsonl"])
@pytest.mark.parametrize("strange", STRANGE)
def test_an_unknown_line_is_skipped_or_reported_as_damage(tmp_path: Path, run: RunFile, name: str, strange: str):
    path = make_night(tmp_path, run)
    lines = (path / name).read_bytes().splitlines(keepends=True)
    (path / name).write_bytes(b"".join([STRANGE[strange] + b"\n", *lines]))
    start, diagnosis = resume(path, run), doctor(path)
    assert list(diagnosis.findings.get("records", [])) == start.remarks
    # A line that no start counts is no damage of the refusals.
    assert any(line.startswith(f"{name} was edited") for line in start.remarks) or name == "quarantine.jsonl"
    directory = RunDirectory.reopen(path)
    Quarantine(directory, reread=("prompts", "heldout")).add(stage="labels", reason="no margin", ordinal=7)
    directory.close()


def test_a_part_that_cannot_be_opened_is_a_named_damage(tmp_path: Path, run: RunFile, monkeypatch: pytest.MonkeyPatch):
    path = make_night(tmp_path, run)

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("solon.runs.integrity._sha256", refused)
    damages = {damage.name: damage.text for damage in found_in(path).damages}
    assert damages["rollouts/part-000002.parquet"] == "rollouts/part-000002.parquet cannot be read: Permission denied"


def test_a_process_that_died_at_a_strange_line_leaves_it(tmp_path: Path):
    for line in STRANGE.values():
        (tmp_path / "parts.jsonl").write_bytes(line + b"\n")
        drop_unplaced(tmp_path)
        assert (tmp_path / "parts.jsonl").read_bytes() == line + b"\n"


def test_file_names_that_no_path_can_have_are_ignored_in_a_checkpoint(tmp_path: Path):
    names = ("metrics\0.jsonl", "../metrics.jsonl", "/etc/hostname")
    records = Records(files={name: Running(name).extent().model_copy(update={"lines": 3}) for name in names})
    assert examine(tmp_path, records).damages == ()


def test_parts_outside_the_run_directory_are_not_read(tmp_path: Path):
    line = {"part": "../secret", "rows": 1, "bytes": 1, "sha256": "0"}
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "run" / "parts.jsonl").write_text(json.dumps(line) + "\n")
    assert examine(tmp_path / "run", None) == Integrity(is_recorded=False)
