"""Policies behind servers of their own: which one answers, replaced by newer versions without losing a request.

    a request ──▶ policy ──▶ its current server (bound at admission)
    a newer checkpoint ──▶ verified ──▶ started beside ──▶ attested ──▶ current; the old one ends after its last answer

A version that cannot be verified, started or attested changes nothing: the current one stays.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serve_apps.policy_config import VERSION_MARK, PolicyFile, PolicySection
from serve_apps.text_server import TextServer
from serve_apps.versions import Version, held, newest, newest_label, require_certificate
from serve_apps.web import UnavailableError, UnknownNameError
from solon.engines.lengths import engine_config
from solon.errors import InputError, RunFailedError

LOOK_S = 1.0
"""Between two looks at a run directory and at a server's process."""
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
"""Between attempts to start a lost server again."""
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
    """One policy and its current server."""

    def __init__(self, name: str, section: PolicySection, folder: Path, open_: Open) -> None:
        self.name, self.section = name, section
        self.version: Version | None = None
        self.trouble = "it is starting"
        """Why it is not ready; empty: it is."""
        self.swaps = 0
        self._open, self._folder = open_, folder
        self._server: TextServer | None = None
        self._refused = ""
        """Label of a version that could not be served."""
        self._opened = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: set[TextServer] = set()

    async def start(self) -> None:
        """Serve the newest version and begin to watch. Raises InputError, RunFailedError."""
        version = await asyncio.to_thread(newest, self.section.model)
        if not self.section.allow_uncertified:
            require_certificate(version.path, where=f"policies.{self.name}")
        self._put(version, await self._started(version))
        self._begin(self._watch())

    @asynccontextmanager
    async def bound(self, label: str = "") -> AsyncIterator[Bound]:
        """The current server, kept until the block ends. While a version is replaced by pausing, callers wait.

        Raises UnavailableError while it is started again, UnknownNameError for another version than the current one.
        """
        if self.trouble == "" and not self._opened.is_set():
            await self._opened.wait()
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

    async def _started(self, version: Version) -> TextServer:
        """Raises RunFailedError, AttestationError; then nothing is left of it."""
        if version.canaries is not None:  # of a run, which may remove old checkpoints
            kept = await asyncio.to_thread(held, version, self._folder)
            try:
                return await self._opened_server(kept)
            finally:
                shutil.rmtree(kept.path, ignore_errors=True)  # its weights are in memory
        return await self._opened_server(version)

    async def _opened_server(self, version: Version) -> TextServer:
        server = self._open(self.name, self.section, version, self._folder)
        try:
            await server.start()
            if version.canaries is not None:
                gap = await server.attest(version.canaries, who=f"the server of {self.name} {version.label}")
                _log.info("%s %s is attested: %.1e nats from the learner", self.name, version.label, gap)
        except BaseException:
            await server.close()
            raise
        return server

    def _put(self, version: Version, server: TextServer) -> None:
        old, self._server, self.version, self.trouble = self._server, server, version, ""
        self._opened.set()
        if old is not None:
            self.swaps += 1
            self._begin(self._retire(old))

    async def _retire(self, old: TextServer) -> None:
        self._ending.add(old)
        if not await old.drained(LONGEST_ANSWER_S):
            _log.warning("%s: an answer of the replaced version was cut", self.name)
        await old.close()
        self._ending.discard(old)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._server is None or self._server.failure():
                    await self._restart()
                elif self.section.follow:
                    await self._follow()
            except (RunFailedError, InputError, OSError) as error:
                _log.error("policy %s: %s", self.name, error)

    async def _follow(self) -> None:
        assert self.version is not None
        label = newest_label(self.section.model)
        if label in ("", self.version.label, self._refused):
            return
        try:
            version = await asyncio.to_thread(newest, self.section.model)
        except InputError:
            self._refused = label
            raise
        if version.digest == self.version.digest:  # the newest is damaged, or a copy: it is not read every second
            self._refused = label
            return
        try:
            await (self._swap_beside(version) if self.section.swap == "beside" else self._swap_paused(version))
        except (RunFailedError, InputError):
            self._refused = label  # the current version stays; a newer one is tried
            raise
        _log.warning("policy %s is now %s", self.name, version.label)

    async def _swap_beside(self, version: Version) -> None:
        self._put(version, await self._started(version))

    async def _swap_paused(self, version: Version) -> None:
        """Raises what `_started` raises, after the version before is served again."""
        assert self.version is not None
        old, before = self._server, self.version
        assert old is not None
        self._opened.clear()
        await old.drained(LONGEST_ANSWER_S)
        self._server = None
        await old.close()
        try:
            self._put(version, await self._started(version))
            self.swaps += 1
        except RunFailedError:
            self._put(before, await self._started(before))
            raise

    async def _restart(self) -> None:
        lost, self._server = self._server, None
        self.trouble = "its server was lost"
        if lost is not None:
            _log.error("policy %s: %s", self.name, lost.failure())
            await lost.close()
        wait_s = FIRST_WAIT_S
        while True:
            try:
                version = await asyncio.to_thread(newest, self.section.model)
                self._put(version, await self._started(version))
            except (RunFailedError, InputError, OSError) as error:
                self.trouble = "it cannot be started; the service's log says why"
                _log.error("policy %s cannot be started again: %s", self.name, error)
                await asyncio.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, 2 * wait_s)
            else:
                _log.warning("policy %s is ready again", self.name)
                return

    def _begin(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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
