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
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from compression.assignment import Point, assign, promoted
from compression.candidates import Candidate, Tried, described, read_tried
from compression.export import Exported, export
from compression.flips import BETA, damage
from compression.gate.gate import ALPHA, LOOKS, Decision, decide
from compression.gate.thresholds import thresholds
from compression.original import MOST_SEARCHED, Original
from compression.pairs import SHARES, Pair, digest_of_pairs, parted
from compression.quantise import PACKAGES
from compression.request import Request, check, require_enough, require_possible
from compression.results import certified, report_of, sweep_report
from compression.screen import agreement, completed, screened, swept_units
from compression.sensitivity import (
    Costs,
    Planned,
    Sweep,
    Sweeper,
    SweepFile,
    costs_of,
    measured,
    plan_of,
    sweeps_digest,
    sweeps_of,
)
from compression.served_check import check_in_vllm
from compression.units import Assignment, size_of, skeleton, uniform, units_of
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError, RunFailedError
from solon.feedback.judges.identity import weights_digest
from solon.files.whole_file import write_whole
from solon.models.certificate import ACCEPTED, RECORD, digest_of_files, write_certificate
from solon.models.formats import FORMATS, KEEP

MOST_PROMOTED = 0.15
"""Share of the units that recovery may give more bits."""
PROMOTIONS = 3
"""Candidates with more and more of them."""
MOST_TAUGHT = 2048
"""Pairs of a repair."""
MOST_CALIBRATED = 512
Say = Callable[[str], None]


class Compression:
    """`Compression(request, pairs, say=print).run()`. Raises InputError before anything is written where possible.

    sweeper: measures sweeps elsewhere, such as `cluster.sweeps.RaySweeper`; None: in this process.
    """

    def __init__(
        self,
        request: Request,
        pairs: Sequence[Pair],
        say: Say = lambda _: None,
        tick: Callable[[float], None] = lambda _: None,
        sweeper: Sweeper | None = None,
    ) -> None:
        self._request, self._say, self._tick, self._sweeper = request, say, tick, sweeper
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
        self._original = Original(request, self._parts, self._tokenizer)
        settings: dict[str, Any] = {
            "model": weights_digest(request.model),
            "pairs": digest_of_pairs(pairs),
            "target": request.form or request.size,
            "formats": sorted(request.formats),
            "screen": request.screen,
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
        self._shared = request.work or request.out.with_name(f"{request.out.name}.work")
        self.work = self._shared / digest
        """Of these settings: another model, other pairs or another target have a folder of their own. Sweeps lie above
        it, as they do not depend on the target."""

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
        noise = self._original.noise(self._limits)
        tried: list[Tried] = []
        for candidate in self._candidates():
            self._say(f"{candidate.name}: {described(candidate.assignment)}, {candidate.algorithm}")
            found = self._try(candidate, noise)
            tried.append(found)
            self._say(f"{candidate.name}: {found.decision['verdict']}, {found.decision['reason']}")
            if found.decision["verdict"] == ACCEPTED:
                break
        report = report_of(tried, request=self._request, units=self.units, noise=noise)
        if "_costs" in vars(self):
            report |= sweep_report(self.units, self._formats, self._sweeps, self._costs)
            if self._request.screen:
                report |= {"screen_agreement": agreement(self._screen, self._sweeps)}
        if tried[-1].decision["verdict"] == ACCEPTED:
            if self._request.serve:
                self._say("vLLM loads it and writes")
                prompts = [pair.prompt for pair in self._parts["gate"][:4]]
                place = self.work / f"candidate-{tried[-1].candidate.name}"
                check_in_vllm(place, prompts, log=self.work / "vllm.log")
            self._publish(tried[-1], noise)
        return report

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

    @property
    def _swept_with(self) -> str:
        """Identifies the model, the pairs and the arithmetic of sweeps."""
        return sweeps_digest(self._settings["model"], self._original.search, self._settings["versions"])

    @cached_property
    def _screen(self) -> Costs:
        """Harm by gradients."""
        original, kept = self._original, self._shared / f"screen-{self._swept_with}.json"
        self._say(f"gradients of {len(original.search)} pairs for {len(self.units)} units")
        return screened(original.live, original.search, original.searched, self._formats, kept)

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        share, only = self._request.screen, None
        if share:
            only = swept_units(self.units, self._formats, self._screen, share)
        plan = plan_of(self.units, self._formats, only=only)
        swept = len(self.units) if only is None else len(only)
        self._say(f"sweeps over {swept} of {len(self.units)} units with {len(self._original.search)} pairs")
        file = SweepFile(self._shared / f"sweeps-{self._swept_with}.jsonl")
        return sweeps_of(plan, file, self._measure, self._tick)

    def _measure(self, missing: Sequence[Planned]) -> Iterable[Sweep]:
        original = self._original
        if self._sweeper is None:
            return measured(original.live, original.search, original.searched, missing)
        return self._sweeper(self._request.model, original.search, original.searched, missing)

    @property
    def _formats(self) -> list[str]:
        return [name for name in FORMATS if name in (*self._request.formats, self._request.form) and name != KEEP]

    @cached_property
    def _costs(self) -> Costs:
        found = costs_of(self.units, self._formats, self._sweeps, guide="preferences")
        return completed(found, self._screen, self.units) if self._request.screen else found

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
        after, figures = self._original.figures_against(place)
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
            figures={} if bad else asdict(damage(self._original.scores, after)),
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

    # -- results ------------------------------------------------------------------------------------------------------

    def _publish(self, tried: Tried, noise: Mapping[str, float]) -> None:
        """Copy the candidate with its certificate beside the output, then rename it."""
        request = self._request
        with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=f".{request.out.name}-") as scratch:
            beside = Path(scratch) / "model"
            shutil.copytree(self.work / f"candidate-{tried.candidate.name}", beside)
            content = certified(tried, request=request, settings=self._settings, parts=self._parts, noise=noise)
            certificate = write_certificate(beside, content)
            if certificate["files"] != tried.files:
                raise RunFailedError(f"the files of candidate {tried.candidate.name} changed after they were measured")
            if request.out.exists():
                raise InputError(f"{request.out} exists by now, expected a new directory; choose another")
            beside.rename(request.out)


def _plain(decision: Decision) -> dict[str, Any]:
    """As it is read again from a file."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(decision)))
    return found
