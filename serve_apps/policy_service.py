"""Policies behind servers of their own: which one answers, replaced by newer versions without losing a request.

    a request ──▶ policy ──▶ its current server (bound at admission)
    a newer checkpoint ──▶ verified ──▶ loaded when nothing is in flight ──▶ attested ──▶ current
      or, beside: ──▶ verified ──▶ a second server ──▶ attested ──▶ current; the old one ends after its last answer

A version that cannot be verified, started or attested changes nothing: the current one stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_apps.policy_config import VERSION_MARK, PolicyFile, PolicySection
from serve_apps.text_server import TextServer
from serve_apps.versions import Version, checkpoints_of, held, newest, newest_label, require_certificate
from serve_apps.web import UnavailableError, UnknownNameError
from solon.engines.lengths import engine_config
from solon.errors import AttestationError, RunFailedError

LOOK_S = 1.0
"""Between two looks at a run directory and at a server's process."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Between attempts to start a lost server again."""
HEALTH_PERIOD_S, MOST_MISSES = 10.0, 3
"""Between two questions to a server whether it is well; without so many answers in a row it counts as lost."""
AGAIN_S = 60.0
"""After which a version that could not be served is tried again."""
LONGEST_PAUSE_S = 30.0
"""For which requests wait until the answers in flight end."""
LONGEST_ANSWER_S = 600.0
"""An answer that takes longer is cut when its version is replaced."""
_log = logging.getLogger(__name__)

Open = Callable[[str, PolicySection, Version, Path], TextServer]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a request is bound to until its answer is complete."""

    policy: str
    version: Version
    server: TextServer


class ServedPolicy:
    """One policy and its current server. `bound` gives the server to a request; a task watches server and run."""

    def __init__(
        self, name: str, section: PolicySection, folder: Path, open_: Open, *, certified_as: Sequence[str] = ()
    ) -> None:
        """certified_as: roles of a compressed model that are enough beside that of a policy."""
        self._certified_as = certified_as
        self.name, self.section = name, section
        self.version: Version | None = None
        """Its path is the service's own copy where it is a checkpoint."""
        self.trouble = "it is starting"
        """Why it is not ready; empty: it is."""
        self.swaps = 0
        self._open, self._folder = open_, folder
        self._server: TextServer | None = None
        self._refused, self._refused_at = "", 0.0
        """Label of a version that could not be served, and when it was tried."""
        self._gate = asyncio.Event()
        """Closed while the server loads a version."""
        self._gate.set()
        self._misses, self._asked_at = 0, 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[TextServer] = set()

    async def start(self) -> None:
        """Serve the newest version and begin to watch. Raises InputError, RunFailedError."""
        version = await asyncio.to_thread(newest, self.section.model)
        if not self.section.allow_uncertified:
            require_certificate(version.path, where=self.name, others=self._certified_as)
        await self._change_to(version)
        self._begin(self._watch())

    @asynccontextmanager
    async def bound(self, label: str = "") -> AsyncIterator[Bound]:
        """The current server, kept until the block ends. While it loads a version, callers wait.

        Raises UnavailableError while it is started again, UnknownNameError for another version than the current one.
        """
        while not self._gate.is_set():
            await self._gate.wait()
        server, version = self._server, self.version
        if server is None or version is None:
            raise UnavailableError(f"the policy {self.name} is not ready: {self.trouble}")
        if label not in ("", version.label):
            raise UnknownNameError(
                f"got version {label!r} of {self.name}, expected {version.label}, which is served now", param="model"
            )
        with server.in_use():
            yield Bound(self.name, version, server)

    async def close(self) -> None:
        """End its servers."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        server, self._server = self._server, None
        for one in (*self._ending, *([server] if server else [])):
            await one.close()

    # -- versions ---------------------------------------------------------------------------------------------------

    async def _change_to(self, version: Version) -> None:
        """Start a server with a version and let it answer; the one before ends after its last answer. Raises
        RunFailedError, AttestationError, InputError, OSError; then nothing has changed."""
        version = await self._held(version)
        try:
            server = await self._started(version)
        except BaseException:
            if self.version is None or version.path != self.version.path:
                self._remove(version)
            raise
        old, self._server = self._server, server
        self._is_current(version)
        if old is not None:
            self._ending.add(old)
            self._begin(self._retire(old))

    async def _load(self, version: Version) -> None:
        """Load a version into the current server when nothing is in flight; where an answer takes too long, start it
        beside. Raises as `_change_to`."""
        server = self._server
        assert server is not None
        version = await self._held(version)
        self._gate.clear()
        if not await server.drained(LONGEST_PAUSE_S):
            self._gate.set()
            _log.warning("%s: answers took longer than %.0f s, a second server is started", self.name, LONGEST_PAUSE_S)
            await self._change_to(version)
            return
        try:
            await self._exchange(server, version)
        except BaseException:
            self._remove(version)
            self._gate.set()
            raise
        self._is_current(version)

    async def _exchange(self, server: TextServer, version: Version) -> None:
        """Load a version; when it cannot be attested, the version before again. A server that holds neither ends."""
        before = self.version
        assert before is not None
        is_sound = False
        try:
            try:
                await self._loaded(server, version)
            except (RunFailedError, AttestationError):
                await self._loaded(server, before)
                is_sound = True
                raise
            is_sound = True
        finally:
            if not is_sound:
                self._server, self.trouble = None, "its server could not load a version"
                await server.close()

    async def _held(self, version: Version) -> Version:
        if checkpoints_of(self.section.model) is None or Path(version.path).parent == self._folder:
            return version
        return await asyncio.to_thread(held, version, self._folder)

    def _is_current(self, version: Version) -> None:
        before, self.version, self.trouble = self.version, version, ""
        self._misses = 0
        self._gate.set()
        if before is not None and before.path != version.path:
            self.swaps += 1
            self._remove(before)  # its weights are in memory

    async def _started(self, version: Version) -> TextServer:
        server = self._open(self.name, self.section, version, self._folder)
        try:
            await server.start()
            await self._attest(server, version)
        except BaseException:
            await server.close()
            raise
        return server

    async def _loaded(self, server: TextServer, version: Version) -> None:
        await server.load(version.path, label=f"{self.name}{VERSION_MARK}{version.label}")
        await self._attest(server, version)

    async def _attest(self, server: TextServer, version: Version) -> None:
        if version.canaries is None and checkpoints_of(self.section.model) is not None:
            _log.warning("%s %s has no canaries, so its server is not attested", self.name, version.label)
        elif version.canaries is not None:
            gap = await server.attest(version.canaries, who=f"the server of {self.name} {version.label}")
            _log.info("%s %s is attested: %.1e nats from the learner", self.name, version.label, gap)

    def _remove(self, version: Version) -> None:
        if Path(version.path).parent == self._folder:
            shutil.rmtree(version.path, ignore_errors=True)

    async def _retire(self, old: TextServer) -> None:
        if not await old.drained(LONGEST_ANSWER_S):
            _log.warning("%s: an answer of the replaced version was cut", self.name)
        await old.close()
        self._ending.discard(old)

    # -- watching ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._server is None or await self._is_lost(self._server):
                    await self._restart()
                elif self.section.follow and not self._ending:  # at most two servers at a time
                    await self._follow()
            except Exception as error:  # whatever it is, the watch continues
                _log.error("policy %s: %s", self.name, error)

    async def _is_lost(self, server: TextServer) -> bool:
        """Whether its process has ended, or it has not answered several times in a row."""
        if server.failure():
            return True
        if time.monotonic() - self._asked_at >= HEALTH_PERIOD_S:
            self._asked_at = time.monotonic()
            self._misses = 0 if await server.answers() else self._misses + 1
        return self._misses >= MOST_MISSES

    async def _follow(self) -> None:
        assert self.version is not None
        label = newest_label(self.section.model)
        waits = label == self._refused and time.monotonic() - self._refused_at < AGAIN_S
        if label in ("", self.version.label) or waits:
            return
        self._refused, self._refused_at = label, time.monotonic()  # until it is served
        version = await asyncio.to_thread(newest, self.section.model)
        if version.digest == self.version.digest:
            return
        await (self._load if self.section.swap == "reload" else self._change_to)(version)
        self._refused = ""
        _log.warning("policy %s is now %s", self.name, version.label)

    async def _restart(self) -> None:
        """Serve the current version again: it has been proven. Only where it is gone, the newest one."""
        lost, self._server = self._server, None
        self.trouble = "its server was lost"
        if lost is not None:
            _log.error("policy %s: %s", self.name, lost.failure() or "its server does not answer")
            await lost.close()
        wait_s = FIRST_WAIT_S
        while True:
            current = self.version
            try:
                if current is None or _is_gone(current):
                    current = await asyncio.to_thread(newest, self.section.model)
                await self._change_to(current)
            except Exception as error:  # whatever it is, it is tried again
                self.trouble = "it cannot be started; the service's log says why"
                self._gate.set()  # those who wait are told
                _log.error("policy %s cannot be started again: %s", self.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            else:
                _log.warning("policy %s is ready again", self.name)
                return

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _is_gone(version: Version) -> bool:
    return not Path(version.path).exists()


class PolicyService:
    """All policies of a settings file. open_: makes a server; by default vLLM's."""

    def __init__(self, file: PolicyFile, open_: Open | None = None) -> None:
        self.file = file
        self._folder = Path(tempfile.mkdtemp(prefix="solon-serve-"))
        self._policies = {
            name: ServedPolicy(name, section, self._folder, open_ or open_server)
            for name, section in file.policies.items()
        }

    async def start(self) -> None:
        """Start the policies one after the other. Raises InputError, RunFailedError."""
        for policy in self._policies.values():
            await policy.start()

    async def close(self) -> None:
        """End all servers."""
        for policy in self._policies.values():
            with suppress(RunFailedError):
                await policy.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def find(self, model: str, user: str) -> tuple[ServedPolicy, str]:
        """The policy that a request names, and the version if it names one. user: decides the arm of a comparison: the
        same user always gets the same one. Raises UnknownNameError."""
        name, _, label = model.partition(VERSION_MARK)
        if name in self.file.compare and not label:
            name = arm_of(user, name, self.file.compare[name].arms)
        if name not in self._policies:
            known = ", ".join([*self._policies, *self.file.compare])
            raise UnknownNameError(f"got the model {model[:80]!r}, expected one of {known}", param="model")
        return self._policies[name], label

    @property
    def policies(self) -> list[ServedPolicy]:
        """In the order of the file."""
        return list(self._policies.values())

    def troubles(self) -> dict[str, str]:
        """By policy; `ready` where there is none."""
        return {policy.name: policy.trouble or "ready" for policy in self.policies}


def arm_of(user: str, comparison: str, arms: dict[str, float]) -> str:
    """The arm of a user: by hash, so that every process and every start agrees.

    >>> arm_of("u-17", "trial", {"before": 1, "after": 1}) == arm_of("u-17", "trial", {"before": 1, "after": 1})
    True
    """
    digest = hashlib.sha256(f"{comparison}\0{user}".encode("utf-8", "surrogatepass")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(arms.values())
    for name, share in arms.items():
        place -= share
        if place < 0:
            return name
    return next(reversed(arms))


def open_server(name: str, section: PolicySection, version: Version, folder: Path) -> TextServer:
    """vLLM's server of a version, not started. Raises InputError."""
    from solon.engines.device import vllm_build

    config = engine_config(version.path, section.engine)
    label = f"{name}{VERSION_MARK}{version.label}"
    log = folder / f"{name}-{version.label}.log"
    return TextServer(config, (name, label), label=label, log=log, on_gpu=vllm_build() == "gpu")
