"""Verdicts of a person's functions, called in one process apart from the caller's."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from solon.constitution.constitution import Constitution
from solon.errors import InputError, RunFailedError, nearest
from solon.feedback.interfaces import Item
from solon.feedback.judges.identity import JudgeIdentity
from solon.feedback.judges.program_file import TRUE, ProgramFile
from solon.host.own_code import child_environment, module_command
from solon.verdicts import Status, Verdict

MOST_LINE = 1 << 20
"""Bytes of a reply."""


class ProgramJudge:
    """Implements `HostedJudge`. An exception, a value that is no number, and a call beyond the deadline are invalid
    verdicts, never zeros."""

    def __init__(self, file: ProgramFile, constitution: Constitution, *, name: str, alone: bool = True) -> None:
        """alone: there is no other judge, so every principle needs a program."""
        self.name = name
        self._file, self._constitution, self._alone = file, constitution, alone
        self._process: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._spans: list[tuple[float, float]] = []

    @property
    def principles(self) -> frozenset[str]:
        """Those that programs decide."""
        return frozenset(self._file.programs)

    async def start(self) -> JudgeIdentity:
        """Import the functions. Raises InputError when that fails, for a program whose principle there is not, and for
        a principle without a program or another judge."""
        known = [principle.id for principle in self._constitution.principles]
        if strange := sorted(self.principles - set(known)):
            raise InputError(
                f"programs.{strange[0]} is no principle of the constitution {self._constitution.id!r}"
                f"{nearest(strange[0], known)}; expected one of {', '.join(known)}"
            )
        if self._alone and (missing := [one for one in known if one not in self.principles]):
            raise InputError(
                f"the principle {missing[0]!r} has no program, expected one for each principle: no other judge decides "
                "it; add one, remove the principle, or name a judge and set feedback.programs"
            )
        try:
            await self._begin()
        except RunFailedError as error:
            raise InputError(f"{error}; correct the file") from None
        return JudgeIdentity(
            judge_id=self.name,
            model="programs",
            weights_digest=self._file.digest,
            quantization="none",
            engine="python",
            engine_version=platform.python_version(),
            dtype="float64",
            tokenizer_digest="none",
            template_id="none",
            constitution_id=self._constitution.id,
            constitution_hash=self._constitution.hash,
        )

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """One call for each answer, in order."""
        started = time.time()
        try:
            return [await self._verdict(item) for item in items]
        finally:
            self._spans.append((started, time.time()))

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """The same: nothing is cached."""
        return await self.judge(items)

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) wall-clock seconds of calls since the last call."""
        spans, self._spans = self._spans, []
        return spans

    async def close(self) -> None:
        """End the process."""
        await self._end()

    async def _verdict(self, item: Item) -> Verdict:
        values: list[float] = []
        for answer in item.answers:
            status, said, value = await self._call(item, answer)
            if value is None:
                return Verdict(status=status, margin=None, judge=self.name, questions=len(values) + 1, detail=said)
            values.append(value)
        margin = (values[0] - values[1] if len(values) == 2 else values[0]) * item.polarity
        return Verdict(
            status=Status.OK, margin=margin, raw_margin=margin, mass=1.0, judge=self.name, questions=len(values)
        )

    async def _call(self, item: Item, answer: str) -> tuple[Status, str, float | None]:
        messages = [{"role": m.role, "content": m.content} for m in item.conversation]
        request = {"program": item.principle_id, "messages": messages, "answer": answer}
        async with self._one_at_a_time:
            try:
                reply = await self._ask(request, self._file.deadline_s)
            except TimeoutError:
                await self._end()
                said = f"the program of {item.principle_id} took longer than {self._file.deadline_s:g} s"
                return Status.TIMEOUT, said, None
            except RunFailedError as error:
                return Status.ENGINE_ERROR, str(error), None
        if "error" in reply:
            return Status.ENGINE_ERROR, f"the program of {item.principle_id} raised {reply['error']}", None
        if "invalid" in reply:
            said = f"the program of {item.principle_id} {reply['invalid']}, expected a number or a truth value"
            return Status.UNPARSABLE, said, None
        value = reply["value"]
        return Status.OK, "", (TRUE if value else -TRUE) if isinstance(value, bool) else float(value)

    async def _begin(self) -> None:
        """Start the process. Raises RunFailedError."""
        self._process = await asyncio.create_subprocess_exec(
            *module_command("solon.feedback.judges.program_process"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
            limit=MOST_LINE,
        )
        places = {one: self._file.place(one) for one in self._file.programs}
        programs = {one: (str(file), function) for one, (file, function) in places.items()}
        try:
            reply = await self._ask({"programs": programs}, self._file.start_s)
        except TimeoutError:
            await self._end()
            raise RunFailedError(f"the programs were not imported within {self._file.start_s:g} s") from None
        if "error" in reply:
            await self._end()
            raise RunFailedError(f"the programs cannot be imported: {reply['error']}")

    async def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One line there, one line back. Raises TimeoutError, and RunFailedError when the process has ended."""
        if self._process is None:
            await self._begin()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
            reply = json.loads(line)
        except asyncio.CancelledError:
            self._kill()  # the reply to this request must not be read as that to the next one
            raise
        except (ConnectionError, ValueError):
            await self._end()
            raise RunFailedError(f"the process of the programs ended with code {process.returncode}") from None
        assert isinstance(reply, dict)
        return reply

    def _kill(self) -> asyncio.subprocess.Process | None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return process

    async def _end(self) -> None:
        if (process := self._kill()) is not None:
            await process.wait()


class MixedJudge:
    """Implements `HostedJudge`: programs decide some principles, another judge the others."""

    def __init__(self, judge: Any, programs: ProgramJudge) -> None:
        self.name = judge.name
        self._judge, self._programs = judge, programs

    async def start(self) -> JudgeIdentity:
        """The identity of the other judge; each label names the judge of its verdict."""
        await self._programs.start()
        identity: JudgeIdentity = await self._judge.start()
        return identity

    async def judge(self, items: Sequence[Item]) -> list[Verdict]:
        """See `Judge.judge`."""
        return await self._shared(items, "judge")

    async def judge_fresh(self, items: Sequence[Item]) -> list[Verdict]:
        """Without caches."""
        return await self._shared(items, "judge_fresh")

    def drain_spans(self) -> list[tuple[float, float]]:
        """(start, end) of the work of both since the last call."""
        return sorted([*self._judge.drain_spans(), *self._programs.drain_spans()])

    async def close(self) -> None:
        """Close both."""
        await asyncio.gather(self._judge.close(), self._programs.close())

    async def _shared(self, items: Sequence[Item], method: str) -> list[Verdict]:
        ours = [item.principle_id in self._programs.principles for item in items]
        parts = await asyncio.gather(
            *(
                getattr(judge, method)([item for item, own in zip(items, ours, strict=True) if own == is_program])
                for judge, is_program in ((self._programs, True), (self._judge, False))
            )
        )
        found = {True: iter(parts[0]), False: iter(parts[1])}
        return [next(found[own]) for own in ours]
