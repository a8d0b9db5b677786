"""How an endpoint is reached: address, model, key, prices. The key itself is never part of the settings."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from solon.errors import InputError

_KEY = re.compile(r"(?i)\b(sk|pk|rk|hf|gsk|xai|ghp|key|akia|aiza|bearer|eyj)[-_ ]?[a-z0-9_-]{15,}")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_OURS = frozenset(
    {"model", "messages", "prompt", "max_tokens", "max_completion_tokens", "temperature", "logprobs", "top_logprobs"}
    | {"stream", "n", "seed", "logprob_token_ids", "return_tokens_as_token_ids"}
)


class EndpointConfig(BaseModel):
    """`EndpointConfig(base_url="https://judge.example/v1", model="big-judge", api_key_env="JUDGE_API_KEY")`"""

    # Inputs are kept out of error messages: one of them may be a key in the wrong field.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    base_url: str
    """Address up to and including `/v1`."""
    model: str = Field(min_length=1, max_length=512)
    """The endpoint's name for the model."""
    api: Literal["chat", "completions"] = "chat"
    """Interface for questions with a text. Questions with token ids always use `completions`."""
    read: Literal["logprobs", "text"] = "logprobs"
    """`logprobs`: the verdict is read from the most likely tokens. `text`: for endpoints without log-probs; the written
    word counts, which does not show how sure the judge is."""
    text_margin: float = Field(1.0, gt=0, le=20)
    """`text`: margin in nats of the written label over the others. A convention, not calibrated."""
    text_tokens: int = Field(8, ge=1, le=64)
    """`text`: tokens that the judge may write."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; never the key itself."""
    api_key_file: str = ""
    """File that holds the key."""
    allow_http: bool = False
    """Allow unencrypted HTTP to another machine: keys and texts can be read in transit."""
    timeout_s: float = Field(60.0, gt=0, le=3600)
    """For a whole request; a request that timed out is not repeated."""
    max_retries: int = Field(3, ge=0, le=3)
    """Retries after lost connections, 5xx and 429."""
    backoff_s: float = Field(0.5, gt=0, le=60)
    """The n-th retry waits a random time up to this times 2^n."""
    retry_after_max_s: float = Field(60.0, ge=0, le=3600)
    """If the endpoint asks for a longer pause, the request fails instead."""
    max_concurrency: int = Field(32, ge=1, le=4096)
    """Concurrent requests of one process."""
    breaker_failures: int = Field(16, ge=1)
    """Consecutive failed requests after which requests pause."""
    breaker_cool_down_s: float = Field(30.0, gt=0)
    top_logprobs: int = Field(20, ge=1, le=20)
    """Number of most likely tokens to request; some endpoints return at most 5."""
    seed: int | None = None
    """Sent with requests if given."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name of this field in chat."""
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Further request fields, `{"chat_template_kwargs": {"enable_thinking": false}}`."""
    escape_markers: bool = True
    """Send control words in texts (`<|im_end|>`, `</s>`, `[INST]`) with a backslash, `<\\|im_end|>`: the server would
    treat them as control tokens."""
    markers: tuple[Annotated[str, Field(min_length=2, max_length=64, pattern=r"^[^\w\s]")], ...] = Field(
        default=(), max_length=100
    )
    """Further control words of the endpoint's model; each begins with a symbol, such as `<`."""
    usd_per_million_input: float = Field(0.0, ge=0)
    """Price of prompt tokens."""
    usd_per_million_cached: float | None = Field(None, ge=0)
    """Price of prompt tokens from the endpoint's cache; default: `usd_per_million_input`."""
    usd_per_million_output: float = Field(0.0, ge=0)
    """Price of written tokens."""

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError("is not an address; expected one such as https://judge.example/v1") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            raise ValueError("is not an address; expected one such as https://judge.example/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("has a user, a query or a fragment; a key belongs in `api_key_env`")
        if parts.path.rstrip("/").endswith(("/completions", "/chat")):
            raise ValueError("names one method; give the part up to `/v1`")
        return url.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str) -> str:
        if name and not _VARIABLE.fullmatch(name):
            raise ValueError(
                "is not the name of an environment variable such as JUDGE_API_KEY (the input is not shown, it may be a "
                "key); put the key into a variable and its name here"
            )
        return name

    @model_validator(mode="after")
    def _holds_together(self) -> EndpointConfig:
        for field, value in self.__dict__.items():
            if _KEY.search(json.dumps(value)):
                raise ValueError(f"`{field}` looks like a key; put it into an environment variable, see `api_key_env`")
        if taken := sorted(_OURS & self.extra.keys()):
            raise ValueError(f"`extra` has `{taken[0]}`, which Solon sets itself; remove it")
        if self.api_key_env and self.api_key_file:
            raise ValueError("both `api_key_env` and `api_key_file` are given; keep one")
        if urlsplit(self.base_url).scheme == "http" and not self.is_loopback and not self.allow_http:
            raise ValueError("`base_url` is plain http to another machine; use https, or set `allow_http = true`")
        return self

    @property
    def is_loopback(self) -> bool:
        """The endpoint runs on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def digest(self) -> str:
        """Identifies all settings that affect a verdict, for the cache; prices, limits and the key do not."""
        parts = (self.base_url, self.model, self.api, self.read, self.top_logprobs, self.seed, self.extra)
        text = (self.text_margin, self.text_tokens) if self.read == "text" else ()
        return hashlib.sha256(json.dumps([*parts, *text], sort_keys=True).encode()).hexdigest()


def read_key(config: EndpointConfig) -> str:
    """The configured key; empty if none is configured. Raises InputError, which never shows it."""
    if config.api_key_env:
        key, where = os.environ.get(config.api_key_env, ""), f"the environment variable {config.api_key_env}"
    elif config.api_key_file:
        where = f"the file {config.api_key_file}"
        try:
            key = Path(config.api_key_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the endpoint's key: {where} cannot be read ({type(error).__name__})") from None
    else:
        return ""
    key = key.strip()
    if not key:
        raise InputError(f"the endpoint's key: {where} is empty or not set; set it, or leave out the key")
    if not re.fullmatch(r"[!-~]+", key):
        raise InputError(f"the endpoint's key: {where} holds more than one word of plain characters")
    return key
