"""Pushes a policy to the Hugging Face hub: plans which files and says so, then sends them as a pull request."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from solon.checkpoints.folder import CheckpointFolder
from solon.errors import InputError, RunFailedError, one_line
from solon.files.regular import require_regular
from solon.hub.card import model_card
from solon.redaction import redacted

CARD = "README.md"
SENT = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md", ".tiktoken")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""May run code in the process that loads them."""
TEXT_BYTES = 2**20
"""Texts of up to this size are searched for secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A file that would be sent."""

    name: str
    path: Path
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """Everything that would be sent."""

    policy: Path
    files: tuple[Planned, ...]
    left: tuple[str, ...]
    """Files that stay."""
    card: str


def plan(source: Path) -> Push:
    """What a push of a run or of a model's directory would send. Reads only.

    Raises InputError for a place without a model, pickles, and files that hold what looks like a secret.
    """
    policy, run = _policy_of(source)
    files, left = [], []
    for path in sorted(policy.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(policy).as_posix()
        if path.suffix in PICKLES:
            raise InputError(f"{path} is a pickle, which can run code where it is loaded; expected safetensors")
        if path.suffix not in SENT or any(part.startswith(".") for part in Path(name).parts) or name == CARD:
            left.append(name)
            continue
        files.append(_planned(name, path))
    if not any(one.name.endswith(".safetensors") for one in files):
        raise InputError(f"{policy} holds no .safetensors, expected a model in Hugging Face's form")
    return Push(policy=policy, files=tuple(files), left=tuple(left), card=model_card(policy, run))


def send(push: Push, repo: str, *, private: bool, as_pull_request: bool, message: str) -> str:
    """Create the repository where it is missing and send the files. Returns the address of the commit or pull request.

    The key is that of `hf auth login` or HF_TOKEN. Raises RunFailedError with the hub's own words.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(one.name, str(one.path)) for one in push.files]
    operations.append(CommitOperationAdd(CARD, push.card.encode("utf-8", "replace")))
    api = HfApi(library_name="solon")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message=message, create_pr=as_pull_request)
    except Exception as error:  # of many kinds: the network, the key, the name
        raise RunFailedError(f"the hub refused {repo}: {redacted(one_line(str(error)))}") from None
    return str(done.pr_url or done.commit_url)


def _policy_of(source: Path) -> tuple[Path, Path | None]:
    """The directory of the policy, and of its run."""
    if (source / "checkpoints").is_dir():
        folder = CheckpointFolder(source / "checkpoints")
        steps = folder.steps()
        if not steps:
            raise InputError(f"{source} has no checkpoint yet, expected one; push it when the run has written it")
        return folder.path / CheckpointFolder.name(steps[-1]) / "policy", source
    if not (source / "config.json").is_file():
        raise InputError(f"{source} is neither a run nor a model, expected a run directory, or one with config.json")
    return source, None


def _planned(name: str, path: Path) -> Planned:
    try:
        require_regular(path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
        size = path.stat().st_size
        if size <= TEXT_BYTES and path.suffix != ".safetensors":
            text = path.read_text(encoding="utf-8", errors="replace")
            if redacted(text) != text:
                raise InputError(f"{path} holds what looks like a secret (it is not shown); remove it first")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return Planned(name=name, path=path, nbytes=size, sha256=digest.hexdigest())
