"""Labels items for callers: a judge for each name, kept alive. No HTTP here."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from serve_apps.config import JudgeSection, ServiceFile
from serve_apps.policy_service import Open
from serve_apps.records import Records
from serve_apps.web import ItemError, UnavailableError, UnknownNameError
from serve_apps.writer import Writer
from solon.client.wire import Asked, Compared, JudgeCard, Scored
from solon.constitution.constitution import Constitution
from solon.engines.lengths import engine_config
from solon.errors import RunFailedError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.assembly import HostedJudge, Source, host_judge
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.judges.judge_file import load_judge_file
from solon.feedback.labeler import Labeler
from solon.feedback.labelling.dataset import text_group
from solon.feedback.prompting.secret import nonce_secret
from solon.files.prompts import parse_prompt
from solon.records import Feedback, Group
from solon.verdicts import Task

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Between attempts to start a judge again."""
FORGOTTEN_S = 30.0
_log = logging.getLogger(__name__)

Host = Callable[[str, JudgeSection, Constitution], HostedJudge]


class ServedJudge:
    """One judge. A judge whose engine is lost is closed and started again; meanwhile callers get UnavailableError."""

    def __init__(self, name: str, section: JudgeSection, host: Host) -> None:
        self.name = name
        self.constitution = Constitution.load(section.constitution)
        self._section, self._host = section, host
        self._judge: HostedJudge | None = None
        self._again: asyncio.Task[None] | None = None
        self.identity: JudgeIdentity | None = None
        self.trouble = "it is starting"
        """Why it is not ready; empty: it is."""

    async def start(self) -> None:
        """Raises InputError, RunFailedError."""
        judge = self._host(self.name, self._section, self.constitution)
        try:
            self.identity = await judge.start()
        except BaseException:
            await judge.close()
            raise
        self._judge, self.trouble = judge, ""

    async def label(self, task: Task, groups: Sequence[Group]) -> list[Feedback]:
        """Raises UnavailableError, and InputError where the constitution has no questions for the task."""
        judge = self._judge
        if judge is None:
            raise UnavailableError(f"the judge {self.name} is not ready: {self.trouble}")
        labeler = Labeler(judge, config=self.config(task), constitution=self.constitution)
        try:
            return list(await asyncio.gather(*(labeler.label(group) for group in groups)))
        except RunFailedError as error:
            self._lost(judge, str(error))
            raise UnavailableError(f"the judge {self.name} was lost and is started again") from error

    def config(self, task: Task) -> FeedbackConfig:
        """How it is asked for a task: about every principle that applies, unless the settings name a number. A draw by
        the place of an item in its request would not repeat."""
        feedback = self._section.feedback
        number = feedback.principles_per_group or 0
        return feedback.model_copy(update={"task": task, "principles_per_group": number})

    def card(self) -> JudgeCard:
        """What callers may know of it."""
        identity = self.identity
        return JudgeCard(
            id=self.name,
            model=Path(identity.model).name if identity else "",
            quantization=identity.quantization if identity else "",
            constitution=self.constitution.id,
            constitution_hash=self.constitution.hash,
            ready=not self.trouble,
        )

    async def close(self) -> None:
        """End the judge."""
        if self._again is not None:
            self._again.cancel()
            with suppress(asyncio.CancelledError):
                await self._again
        judge, self._judge = self._judge, None
        if judge is not None:
            await judge.close()

    def _lost(self, judge: HostedJudge, cause: str) -> None:
        if judge is not self._judge:
            return  # another request noticed first
        self._judge, self.trouble = None, "its engine was lost"
        _log.error("judge %s was lost: %s", self.name, cause)
        self._again = asyncio.get_running_loop().create_task(self._restart(judge))

    async def _restart(self, lost: HostedJudge) -> None:
        with suppress(Exception):  # it is broken already
            await lost.close()
        wait_s = FIRST_WAIT_S
        while True:
            try:
                await self.start()
            except Exception as error:  # whatever it is, it is tried again
                self.trouble = "it cannot be started; the service's log says why"
                _log.error("judge %s cannot be started again: %s", self.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            else:
                _log.warning("judge %s is ready again", self.name)
                return


class FeedbackService:
    """All judges and writers of a settings file. host: makes a judge; by default as in training. open_: makes the
    server of a writer; by default vLLM's."""

    def __init__(self, file: ServiceFile, host: Host | None = None, open_: Open | None = None) -> None:
        self.file = file
        self._folder = Path(tempfile.mkdtemp(prefix="solon-serve-"))
        self._writers = {name: Writer(name, section, self._folder, open_) for name, section in file.writers.items()}
        self._judges = {name: ServedJudge(name, section, host or _host) for name, section in file.judges.items()}
        self._records = Records(Path(file.records)) if file.records else None
        self.records_trouble, self._records_failed_at = "", 0.0
        """Why the last request was not recorded. It is forgotten after a while: a balancer that sends no requests
        meanwhile would otherwise never learn that the disk has room again."""

    async def start(self) -> None:
        """Start judges and writers one after the other. Raises InputError, RunFailedError."""
        for judge in self._judges.values():
            await judge.start()
        for writer in self._writers.values():
            await writer.policy.start()

    async def close(self) -> None:
        """End judges and writers."""
        for judge in self._judges.values():
            await judge.close()
        for writer in self._writers.values():
            await writer.policy.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def writer(self, name: str, *, param: str = "writer") -> Writer:
        """Raises UnknownNameError. param: the field of the request that names it."""
        if name not in self._writers:
            known = ", ".join(self._writers) or "none, as the service has no writers"
            raise UnknownNameError(f"got the writer {name[:60]!r}, expected one of {known}", param=param)
        return self._writers[name]

    def judge(self, name: str) -> ServedJudge:
        """Raises UnknownNameError."""
        if name not in self._judges:
            known = ", ".join(self._judges) or "none, as the service has no judges"
            raise UnknownNameError(f"got the judge {name!r}, expected one of {known}", param="judge")
        return self._judges[name]

    def cards(self) -> list[JudgeCard]:
        """Of all judges and writers."""
        writers = [_card(writer) for writer in self._writers.values()]
        return [*(judge.card() for judge in self._judges.values()), *writers]

    def troubles(self) -> dict[str, str]:
        """By judge, and of the records; `ready` where there is none."""
        found = {name: judge.trouble or "ready" for name, judge in self._judges.items()}
        if time.monotonic() - self._records_failed_at > FORGOTTEN_S:
            self.records_trouble = ""
        found |= {name: writer.policy.trouble or "ready" for name, writer in self._writers.items()}
        return found | ({"records": self.records_trouble} if self.records_trouble else {})

    async def scores(self, name: str, items: Sequence[Scored], *, caller: str, request_id: str) -> list[Feedback]:
        """Feedback on one answer each."""
        judge = self.judge(name)
        groups = [_group(number, item, (item.answer,), (item.is_cut,)) for number, item in enumerate(items)]
        return await self._labelled(judge, "pointwise", groups, caller, request_id)

    async def preferences(
        self, name: str, items: Sequence[Compared], *, caller: str, request_id: str
    ) -> list[Feedback]:
        """Feedback on two answers each."""
        judge = self.judge(name)
        groups = [_group(number, item, (item.first, item.second)) for number, item in enumerate(items)]
        return await self._labelled(judge, "pairwise", groups, caller, request_id)

    async def _labelled(
        self, judge: ServedJudge, task: Task, groups: Sequence[Group], caller: str, request_id: str
    ) -> list[Feedback]:
        found = await judge.label(task, groups)
        if self._records is not None and judge.identity is not None:
            mark = {"run_id": request_id, "caller": caller}
            try:
                await self._records.write(groups, found, judge.identity, mark)
            except OSError as error:
                _log.error("records cannot be written: %s", error)
                self.records_trouble, self._records_failed_at = "records cannot be written", time.monotonic()
                raise UnavailableError("the verdicts could not be recorded; the service's log says why") from error
            self.records_trouble = ""
        return found


def _card(writer: Writer) -> JudgeCard:
    rules = writer.constitution
    return JudgeCard(
        id=writer.name,
        model=Path(writer.policy.section.model).name,
        quantization="",
        constitution=rules.id if rules else "",
        constitution_hash=rules.hash if rules else "",
        ready=not writer.policy.trouble,
        writes=True,
    )


def _group(number: int, item: Asked, answers: tuple[str, ...], cut: tuple[bool, ...] = ()) -> Group:
    row = {"prompt": [{"role": turn.role, "content": turn.content} for turn in item.messages], "tags": list(item.tags)}
    try:
        prompt = parse_prompt(row)
    except ValueError as error:
        raise ItemError(f"items.{number}.messages", str(error)) from None
    group = text_group(number, prompt, answers)
    if not any(cut):
        return group
    rollouts = tuple(replace(one, is_cut=flag) for one, flag in zip(group.rollouts, cut, strict=True))
    return replace(group, rollouts=rollouts)


def _host(name: str, section: JudgeSection, constitution: Constitution) -> HostedJudge:
    source: Source
    if section.model.endswith(".toml"):
        source = load_judge_file(section.model)
    else:
        source = engine_config(section.model, section.judging)
    return host_judge(source, section.feedback, constitution, name=name, secret=nonce_secret())
