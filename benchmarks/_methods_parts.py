"""The parts of `benchmarks/methods.py`, each a few commands of Solon and the rows that follow from their files."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._harness import Row
from benchmarks._revision_examples import with_examples

ROOT = Path(__file__).resolve().parents[1]
NURSERY = ROOT / "examples" / "nursery.toml"
ALIGN = {
    "policy": "nursery:policy",
    "judge": "nursery:judge",
    "prompts": "nursery:train_prompts",
    "constitution": "nursery:constitution",
    "heldout_prompts": "nursery:heldout_prompts",
}
LABEL = '[label]\nfeedback = { template = "compact" }\nwrite = { max_tokens = 24, answers = %d }\n'


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "solon", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "SOLON_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}


def solon(*arguments: str, folder: Path) -> dict[str, Any]:
    """Run a command to its end; its JSON. Raises CalledProcessError."""
    done = subprocess.run(
        command(*arguments, "--json"), cwd=folder, env=environment(folder), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def roads(folder: Path, *, quick: bool) -> list[Row]:
    """Every method of `examples/compare.toml` against the starting policy."""
    options = ["--set", "seeds=[0]", "--set", "evaluate.max_prompts=64"] if quick else []
    result = solon("compare", str(ROOT / "examples" / "compare.toml"), *options, folder=folder)
    rows = []
    for one in result["methods"]:
        change, name = one["change"], one["name"]
        rows.append(Row(f"{name}: change of held-out adherence", change["value"]))
        rows.append(Row(f"{name}: lower end of its 95 % interval", change["low"], goal=">= 0.0"))
        rows.append(Row(f"{name}: seconds of the machine", one["cost"]["seconds"]))
        rows.append(Row(f"{name}: AI labels", one["cost"]["ai_labels"]))
        rows.append(Row(f"{name}: KL from the start, nats an answer", one["kl"]))
    print(result["advice"], flush=True)
    return rows


def staleness(folder: Path, *, quick: bool) -> list[Row]:
    """Asynchronous training compared with the same steps taken one stage after the other."""
    seeds, rows = range(1 if quick else 5), []
    for objective in ("online_dpo", "ppo"):
        after: dict[int, list[float]] = {0: [], 4: []}
        for seed in seeds:
            for bound, scores in after.items():
                scores.append(_trained(folder, objective, seed, bound, steps=4 if quick else 24))
        name = f"{objective}: held-out adherence, staleness up to 4 (reference: synchronous)"
        rows.append(Row(name, float(np.mean(after[4])), float(np.mean(after[0]))))
        apart = np.subtract(after[4], after[0])
        print(f"{objective}: differences by seed {np.round(apart, 3).tolist()}", flush=True)
        if len(apart) > 1:
            low, high = interval(apart, 0.90)
            rows.append(Row(f"{objective}: difference, lower end of 90 %", low, goal=">= -0.03"))
            rows.append(Row(f"{objective}: difference, upper end of 90 %", high, goal="<= 0.03"))
    return rows


def _trained(folder: Path, objective: str, seed: int, bound: int, *, steps: int) -> float:
    name = f"{objective}-{bound}-{seed}"
    options = {
        "steps": steps, "seed": seed, "learn.objective": objective, "staleness.max_staleness": bound,
        "staleness.target_staleness": min(bound, 3), "learn.kl_coefficient": 0.2,
    }  # fmt: skip
    if objective == "online_dpo":
        del options["learn.kl_coefficient"]
    overrides = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    path = NURSERY
    if objective != "ppo":
        path = folder / f"{objective}.toml"
        kept = (line for line in NURSERY.read_text().splitlines() if not line.startswith(("critic_", "kl_")))
        path.write_text("\n".join(kept) + "\n")
    result = solon("train", str(path), "--name", name, *overrides, folder=folder)
    return float(result["eval"]["after"]["mean"])


def interval(values: Sequence[float] | np.ndarray[Any, Any], level: float) -> tuple[float, float]:
    """Student's t over the mean."""
    from scipy.stats import t

    half = t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def constitutional(folder: Path, *, quick: bool) -> list[Row]:
    """Revisions of SmolLM2 compared with its first answers by programs that count kept wishes: after critiques, and at
    once behind examples of revised answers."""
    plain = Path(resolved("english:constitution"))
    shown = with_examples(plain, folder / "with-examples.yaml")
    return [
        _revisions(folder, "after critiques", plain, (), quick=quick),
        _revisions(folder, "at once", plain, ("--set", "critique=false"), quick=quick),
        _revisions(
            folder, "at once, two examples", shown, ("--set", "critique=false", "--set", "shots=2"), quick=quick
        ),
    ]


def _revisions(folder: Path, name: str, constitution: Path, settings: Sequence[str], *, quick: bool) -> Row:
    from english.prompts import adherence
    from solon.records import Message, Prompt

    out = folder / name.replace(" ", "-").replace(",", "")
    solon(
        "revise", "english:train_prompts", "--policy", "english:policy", "--constitution", str(constitution),
        "--out", str(out), "--max-prompts", "16" if quick else "128", "--set", "engine.dtype=bfloat16",
        "--set", "engine.threads=2", "--set", "sampling.max_tokens=56", "--set", "sampling.temperature=0.7",
        *settings, folder=folder,
    )  # fmt: skip
    better = worse = equal = 0
    by_id = {row["row_id"]: row for row in lines(out / "transcripts.jsonl")}
    tags = {one.prompt.prompt_id: one.prompt.tags for one in _rows("english:train_prompts")}
    for prompt_id, row in by_id.items():
        if row["left_out"] not in ("", "unchanged") or not row["rounds"]:
            continue
        messages = tuple(Message(role=one["role"], content=one["content"]) for one in row["prompt"])
        prompt = Prompt(prompt_id=prompt_id, messages=messages, tags=tuple(tags[prompt_id]))
        first, last = (share(adherence(prompt, text)) for text in (row["first"], row["rounds"][-1]["revision"]))
        better, worse, equal = better + (last > first), worse + (last < first), equal + (last == first)
    decided = better + worse
    print(f"revisions {name}: {better} better, {worse} worse, {equal} equal of {len(by_id)}", flush=True)
    return Row(f"revisions {name}: judged better, of decided pairs", better / max(1, decided), goal=">= 0.70")


def kills(folder: Path, *, quick: bool) -> list[Row]:
    """SIGKILL at random moments; every start continues, and the files are those of an alignment left alone."""
    text = "".join(f'{key} = "{value}"\n' for key, value in ALIGN.items()) + LABEL % 4
    text += '[[stages]]\ntype = "preferences"\nmax_prompts = 48\n'
    text += '[[stages]]\ntype = "sft"\nlearn = { learning_rate = 1e-3, max_tokens = 128 }\n'
    text += '[[stages]]\ntype = "reward_model"\npolicy = "nursery:policy"\nlearn = { learning_rate = 1e-3 }\n'
    text += '[[stages]]\ntype = "dpo"\nlearn = { learning_rate = 5e-4 }\n'
    text += '[[stages]]\ntype = "kto"\n[[stages]]\ntype = "drift"\nmax_tokens = 24\n'
    for place in ("alone", "killed"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "pipeline.toml").write_text(text)
    digests = _digests(solon("align", "pipeline.toml", folder=folder / "alone"))
    rng, wanted, killed, again = random.Random(0), 2 if quick else 20, 0, 0
    place, made = folder / "killed", dict[str, float]()
    while killed < wanted:
        process = subprocess.Popen(
            command("align", "pipeline.toml", "--json"), cwd=place, env=environment(place),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        time.sleep(rng.uniform(3, 20))
        if process.poll() is not None:
            _forget(place)  # it had ended: begin again
            made = {}
            continue
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        now = {path.name: path.stat().st_mtime for path in (place / "runs" / "artifacts").glob("*.json")}
        again += sum(now.get(name) != at for name, at in made.items())
        made = now
    found = _digests(solon("align", "pipeline.toml", folder=place))
    return [
        Row("SIGKILLs at random moments", killed),
        Row("finished stages that were made again", again, goal="<= 0"),
        Row("stages with equal digests", sum(found[name] == digest for name, digest in digests.items()), len(digests)),
    ]


def _forget(place: Path) -> None:
    import shutil

    shutil.rmtree(place / "runs", ignore_errors=True)


def _digests(result: Mapping[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["digest"] for stage in result["stages"]}


def resolved(name: str) -> str:
    from solon.cli.names import resolver

    return resolver([name], progress=False)(name)


def _rows(name: str) -> Sequence[Any]:
    from solon.feedback.labelling.dataset import first_rows

    return first_rows(resolved(name), 1_000_000)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def share(kept: Mapping[str, bool]) -> float:
    return sum(kept.values()) / len(kept) if kept else 0.0


PARTS: dict[str, Callable[..., list[Row]]] = {
    "roads": roads,
    "kills": kills,
    "staleness": staleness,
    "constitutional": constitutional,
}
