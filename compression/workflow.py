"""Compress, measure, recover: the steps of `solon compress`. Finished steps are kept beside the output and not
repeated.

    model, pairs ──▶ noise of the model against itself
                 ──▶ formats: one for all, or by sensitivity under a byte budget
                 ──▶ candidate ──▶ gate ──▶ accepted: certificate, and the output appears
                        ▲           └────▶ rejected: the next candidate that recovery allows
                        └─ other rounding, then more bits for the units that need them

The gate measures the files that are served, loaded again. Nothing appears at the output unless the gate accepted it.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from compression.assignment import Point, assign, front, promoted
from compression.candidates import Candidate, Tried, described, read_tried
from compression.export import Exported, export
from compression.flips import BETA, damage
from compression.formats import FORMATS, KEEP
from compression.gate.gate import ALPHA, LOOKS, Decision, Figure, decide, figures_of
from compression.gate.thresholds import thresholds
from compression.judged import spoilt
from compression.live import LiveModel, load_model
from compression.pairs import SHARES, Pair, Scores, digest_of_pairs, parted, scores_of
from compression.quantise import PACKAGES
from compression.request import Request, check, require_enough, require_possible
from compression.sensitivity import Costs, Sweep, SweepFile, costs_of, ranking_agreement, sweeps_of
from compression.served_check import check_in_vllm
from compression.units import Assignment, size_of, skeleton, uniform, units_of
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError, RunFailedError
from solon.feedback.judges.identity import weights_digest
from solon.files.whole_file import write_whole
from solon.models.certificate import ACCEPTED, RECORD, digest_of_files, write_certificate

MOST_PROMOTED = 0.15
"""Share of the units that recovery may give more bits."""
PROMOTIONS = 3
"""Candidates with more and more of them."""
MOST_TAUGHT = 2048
"""Pairs of a repair."""
MOST_SEARCHED = 256
"""Pairs of a sweep."""
MOST_CALIBRATED = 512
Say = Callable[[str], None]


class Compression:
    """`Compression(request, pairs, say=print).run()`. Raises InputError before anything is written where possible."""

    def __init__(
        self,
        request: Request,
        pairs: Sequence[Pair],
        say: Say = lambda _: None,
        tick: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._request, self._say, self._tick = request, say, tick
        check(request)
        self.units = units_of(skeleton(request.model))
        if request.form:
            uniform(self.units, request.form)
        self._limits = thresholds(request.gate, request.role)
        self._tokenizer = ChatTokenizer.load(str(request.model))
        self._parts = parted(pairs)
        asked = request.answers if request.role == "policy" else 0
        if small := require_enough(self._parts["gate"], self._limits, answers=asked):
            say(f"note: too few prompts for figures of their own: {', '.join(small)}")
        if request.size:
            whole = size_of(self.units, uniform(self.units, KEEP))
            require_possible(self.units, self._formats, int(request.size * whole))
        self._search = self._parts["search"][:MOST_SEARCHED]
        settings = {
            "model": weights_digest(request.model),
            "pairs": digest_of_pairs(pairs),
            "target": request.form or request.size,
            "formats": sorted(request.formats),
            "algorithm": request.algorithm,
            "role": request.role,
            "gate": self._limits.model_dump(),
            "recover": [request.recover, request.repair_rate],
            "answers": request.answers,
            "rules": [ALPHA, LOOKS, SHARES, BETA, MOST_PROMOTED, MOST_SEARCHED, MOST_CALIBRATED, MOST_TAUGHT],
            "versions": {package: version(package) for package in PACKAGES},
        }
        self._settings = settings
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        self.work = (request.work or request.out.with_name(f"{request.out.name}.work")) / digest
        """Of these settings: another model, other pairs or another target have a folder of their own."""

    def run(self) -> dict[str, Any]:
        """The report. Raises RunFailedError when the model disagrees with itself, is not served, or the disk fails."""
        try:
            return self._run()
        except OSError as error:
            raise RunFailedError(
                f"{error.filename or self.work}: {error.strerror or error}; free space or change permissions, "
                f"and start "
                "again: what is finished is kept"
            ) from None

    def _run(self) -> dict[str, Any]:
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.work} cannot be made: {error.strerror}; choose another --out") from None
        noise = self._noise()
        tried: list[Tried] = []
        for candidate in self._candidates():
            self._say(f"{candidate.name}: {described(candidate.assignment)}, {candidate.algorithm}")
            found = self._try(candidate, noise)
            tried.append(found)
            self._say(f"{candidate.name}: {found.decision['verdict']}, {found.decision['reason']}")
            if found.decision["verdict"] == ACCEPTED:
                break
        report = self._report(tried, noise)
        if tried[-1].decision["verdict"] == ACCEPTED:
            if self._request.serve:
                self._say("vLLM loads it and writes")
                prompts = [pair.prompt for pair in self._parts["gate"][:4]]
                place = self.work / f"candidate-{tried[-1].candidate.name}"
                check_in_vllm(place, prompts, log=self.work / "vllm.log")
            self._publish(tried[-1], noise)
        return report

    # -- the model as it is ------------------------------------------------------------------------------------------

    @cached_property
    def _live(self) -> LiveModel:
        return LiveModel.load(self._request.model)

    @cached_property
    def _before(self) -> Scores:
        return scores_of(self._live.model, self._parts["gate"])

    @cached_property
    def _searched(self) -> Scores:
        return scores_of(self._live.model, self._search)

    @cached_property
    def _asked(self) -> list[Pair]:
        """One pair of each prompt whose answer is written."""
        first = {pair.prompt_id: pair for pair in reversed(self._parts["gate"])}
        most = self._request.answers if self._request.role == "policy" else 0
        return [first[name] for name in sorted(first)[:most]]

    @cached_property
    def _spoilt(self) -> Any:
        return spoilt(self._live.model, self._asked, self._tokenizer)

    def _noise(self) -> dict[str, float]:
        """Harm of the model against itself, in another order and batch size. Raises RunFailedError when the gate would
        reject it."""
        gate = self._parts["gate"]
        backward = scores_of(self._live.model, gate[::-1], rows=5)
        again = Scores(
            chosen_P=backward.chosen_P[::-1], rejected_P=backward.rejected_P[::-1], tokens_P=backward.tokens_P[::-1]
        )
        if not (np.isfinite(self._before.margin_P).all() and np.isfinite(again.margin_P).all()):
            raise RunFailedError("log-probs of the model are not finite, so nothing can be compared with them")
        noise: dict[str, float] = {}
        for figure in figures_of(gate, self._before, again):
            noise[figure.kind] = max(noise.get(figure.kind, 0.0), abs(float(figure.values_P.mean())))
        for kind, value in noise.items():
            if 2 * value > getattr(self._limits, kind):
                raise RunFailedError(
                    f"the model does not agree with itself in another order and batch size: {kind} {value:.4f}; use "
                    "float32"
                )
        return noise

    # -- candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Candidate]:
        request = self._request
        first = dict(uniform(self.units, request.form)) if request.form else self._chosen.assignment
        yield Candidate(name="1", algorithm=request.algorithm, assignment=first)
        if not request.recover:
            return
        number, algorithm = 1, request.algorithm
        if algorithm == "rtn":
            number, algorithm = 2, "gptq"
            yield Candidate(name="2", algorithm=algorithm, assignment=first)
        for assignment in self._promotions(first) if request.form else ():  # a size is a limit
            number += 1
            yield Candidate(name=str(number), algorithm=algorithm, assignment=assignment)
        if request.role == "policy":
            yield Candidate(name=str(number + 1), algorithm="rtn", assignment=first, is_repaired=True)

    def _promotions(self, first: Assignment) -> Iterator[dict[str, str]]:
        """More and more units with more bits."""
        most, assignment, done = max(1, round(MOST_PROMOTED * len(self.units))), first, 0
        for step in range(1, PROMOTIONS + 1):
            wanted = max(done + 1, round(step * most / PROMOTIONS))
            if wanted > most:
                return
            while done < wanted:
                more = promoted(self.units, self._costs, assignment)
                if more is None:
                    return
                assignment, done = more, done + 1
            yield dict(assignment)

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        self._say(f"sweeps over {len(self.units)} units with {len(self._search)} pairs")
        file = SweepFile(self.work / "sweeps.jsonl")
        return sweeps_of(self._live, self._search, self._searched, self._formats, file, self._tick)

    @property
    def _formats(self) -> list[str]:
        return [name for name in FORMATS if name in (*self._request.formats, self._request.form) and name != KEEP]

    @cached_property
    def _costs(self) -> Costs:
        return costs_of(self.units, self._formats, self._sweeps, guide="preferences")

    @cached_property
    def _chosen(self) -> Point:
        whole = size_of(self.units, uniform(self.units, KEEP))
        return assign(self.units, self._costs, int(self._request.size * whole))

    def _try(self, candidate: Candidate, noise: Mapping[str, float]) -> Tried:
        place = self.work / f"candidate-{candidate.name}"
        kept = place.with_suffix(".json")
        known = read_tried(kept, candidate)
        if known is not None and known.files == digest_of_files(place):
            return known
        shutil.rmtree(place, ignore_errors=True)  # what was not measured to the end may have been changed
        self._export(candidate, place)
        files = digest_of_files(place)
        record = json.loads((place / RECORD).read_text(encoding="utf-8"))
        after, repeats = self._measured(place)
        gate = self._parts["gate"]
        figures = figures_of(gate, self._before, after)
        if self._asked:
            figures.append(
                Figure(
                    name="empty or repeating answers",
                    kind="degenerate",
                    values_P=repeats - self._spoilt,
                    prompts_P=tuple(pair.prompt_id for pair in self._asked),
                )
            )
        bad = sum(not np.isfinite(figure.values_P).all() for figure in figures)
        decision = (
            Decision(verdict="reject", reason="its log-probs are not finite", look=1, rows=())
            if bad
            else decide(figures, self._limits, noise=noise)
        )
        found = Tried(
            candidate=candidate,
            record=record,
            decision=_plain(decision),
            size=size_of(self.units, candidate.assignment),
            files=files,
            figures={} if bad else asdict(damage(self._before, after)),
        )
        write_whole(kept, json.dumps(asdict(found)), what="candidate")
        return found

    def _export(self, candidate: Candidate, place: Path) -> Exported:
        calibration = [[*pair.prompt, *pair.chosen] for pair in self._parts["calibration"][:MOST_CALIBRATED]]
        source = self._request.model
        if candidate.is_repaired:
            source = self.work / f"repaired-{candidate.name}"
            shutil.rmtree(source, ignore_errors=True)
            self._repair(source, candidate.assignment)
        return export(
            source,
            place,
            self.units,
            candidate.assignment,
            algorithm=candidate.algorithm,
            calibration=calibration,
        )

    def _repair(self, target: Path, assignment: Assignment) -> None:
        from compression.repair import RepairConfig, repair

        pairs = [*self._parts["calibration"], *self._parts["search"]][:MOST_TAUGHT]
        config = RepairConfig(learning_rate=self._request.repair_rate)
        report = repair(self._request.model, target, self.units, assignment, pairs, config)
        self._say(
            f"trained on the grid: {report.steps} steps, KL {report.first_loss:.4f} -> {report.last_loss:.4f} "
            f"nats a token"
        )

    def _measured(self, place: Path) -> tuple[Scores, Any]:
        model = load_model(place)
        repeats = spoilt(model, self._asked, self._tokenizer) if self._asked else np.zeros(0)
        return scores_of(model, self._parts["gate"]), repeats

    # -- results ------------------------------------------------------------------------------------------------------

    def _publish(self, tried: Tried, noise: Mapping[str, float]) -> None:
        """Copy the candidate with its certificate beside the output, then rename it."""
        request = self._request
        with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=f".{request.out.name}-") as scratch:
            beside = Path(scratch) / "model"
            shutil.copytree(self.work / f"candidate-{tried.candidate.name}", beside)
            certificate = write_certificate(beside, self._certified(tried, noise))
            if certificate["files"] != tried.files:
                raise RunFailedError(f"the files of candidate {tried.candidate.name} changed after they were measured")
            if request.out.exists():
                raise InputError(f"{request.out} exists by now, expected a new directory; choose another")
            beside.rename(request.out)

    def _certified(self, tried: Tried, noise: Mapping[str, float]) -> dict[str, Any]:
        return {
            "role": self._request.role,
            "verdict": tried.decision["verdict"],
            "reason": tried.decision["reason"],
            "source": self._settings["model"],
            "is_repaired": tried.candidate.is_repaired,
            "candidate": int(tried.candidate.name),
            "pairs": self._settings["pairs"],
            "prompts": {part: len({pair.prompt_id for pair in some}) for part, some in self._parts.items()},
            "thresholds": self._limits.model_dump(),
            "noise": dict(noise),
            "rows": tried.decision["rows"],
            "algorithm": tried.candidate.algorithm,
            "assignment": tried.candidate.assignment,
            "versions": tried.record["versions"],
        }

    def _report(self, tried: Sequence[Tried], noise: Mapping[str, float]) -> dict[str, Any]:
        whole = size_of(self.units, uniform(self.units, KEEP))
        last = tried[-1]
        report: dict[str, Any] = {
            "model": str(self._request.model),
            "out": str(self._request.out) if last.decision["verdict"] == ACCEPTED else None,
            "verdict": last.decision["verdict"],
            "reason": last.decision["reason"],
            "linear_bytes": {"before": whole, "after": last.size},
            "file_bytes": {"before": last.record["source_weight_bytes"], "after": last.record["weight_bytes"]},
            "noise": dict(noise),
            "candidates": [
                {
                    "name": one.candidate.name,
                    "algorithm": one.candidate.algorithm,
                    "is_repaired": one.candidate.is_repaired,
                    "formats": described(one.candidate.assignment),
                    "share": one.size / whole,
                    **one.decision,
                    "figures": one.figures,
                }
                for one in tried
            ],
            "assignment": last.candidate.assignment,
        }
        if "_costs" in vars(self):
            points = front(self.units, self._costs)
            report["front"] = [{"share": point.size / whole, "cost": point.cost} for point in points]
            tau = ranking_agreement(self.units, self._formats, self._sweeps)
            report["ranking_agreement"] = tau if math.isfinite(tau) else None
            report["costs"] = [
                {"unit": unit, "format": form, "cost": cost} for (unit, form), cost in sorted(self._costs.items())
            ]
        return report


def _plain(decision: Decision) -> dict[str, Any]:
    """As it is read again from a file."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(decision)))
    return found
