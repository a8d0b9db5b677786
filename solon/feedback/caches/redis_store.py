"""Verdicts shared by the machines of a cluster, in Redis. Losing Redis costs forward passes, not verdicts."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from solon.errors import InputError
from solon.feedback.caches.store import SCHEMA, decode, encode
from solon.feedback.questions import Answer

PREFIX = f"solon:verdict:{SCHEMA}:".encode()
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
"""Seconds without requests after a failure; doubled after each further one."""
_log = logging.getLogger(__name__)


class RedisStore:
    """A `Store`. `RedisStore("redis://cache.internal:6379/0")`; needs the package `redis` (`pip install solon[redis]`).

    While Redis does not answer, every look-up is a miss and nothing is stored; this is logged once. The address may
    contain a password, so it is never shown.
    """

    def __init__(self, url: str, *, timeout_s: float = 2.0, unparsable_s: float = 86_400.0) -> None:
        try:
            from redis import asyncio as redis
        except ImportError:
            raise InputError("feedback.cache.redis_env needs the package redis; install it with solon[redis]") from None
        try:
            self._client: Any = redis.Redis.from_url(
                url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, protocol=2
            )
        except ValueError:
            raise InputError(
                "the variable that feedback.cache.redis_env names holds no address of Redis, expected one such as "
                "redis://host:6379/0; set it wherever judges run"
            ) from None
        self._where = urlsplit(url).hostname or "redis"
        self._unparsable_s = unparsable_s
        self._silent_until = 0.0
        self._retry_s = FIRST_RETRY_S
        self.failures = 0
        """Number of requests that Redis did not answer."""

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Answer]:
        """See `Store.get_many`."""
        if not keys or self._is_silent():
            return {}
        try:
            values = await self._client.mget([PREFIX + key for key in keys])
        except Exception as error:  # a cache error of any kind must not cost a verdict
            self._note(error)
            return {}
        self._retry_s = FIRST_RETRY_S
        found = zip(keys, values, strict=True)
        return {key: answer for key, value in found if value is not None and (answer := decode(value)) is not None}

    async def put_many(self, answers: Mapping[bytes, Answer]) -> None:
        """See `Store.put_many`."""
        if not answers or self._is_silent():
            return
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for key, answer in answers.items():
                    seconds = None if answer.failure is None else int(self._unparsable_s)
                    pipe.set(PREFIX + key, encode(answer), ex=seconds)
                await pipe.execute()
        except Exception as error:
            self._note(error)
        else:
            self._retry_s = FIRST_RETRY_S

    async def close(self) -> None:
        """Close the connection."""
        try:
            await self._client.aclose()
        except Exception as error:
            self._note(error)

    def _is_silent(self) -> bool:
        return time.monotonic() < self._silent_until

    def _note(self, error: Exception) -> None:
        if self.failures == 0:
            _log.warning(
                "Redis at %s does not answer (%s); verdicts are recomputed until it does", self._where,
                type(error).__name__,
            )  # fmt: skip
        self.failures += 1
        self._silent_until = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
