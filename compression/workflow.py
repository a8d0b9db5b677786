"""Compress, measure, recover: the steps of `solon compress`. Finished steps are kept beside the output and not
repeated.

    model, pairs ──▶ noise of the model against itself
                 ──▶ pruning, and training after it
                 ──▶ formats: one for all, or by sensitivity under a byte budget
                 ──▶ candidate ──▶ gate ──▶ accepted: certificate, and the output appears
                        ▲           └────▶ rejected: the next candidate that recovery allows
                        └─ other algorithms, then more bits for the units that need them

Every copy that recovery tries spends half as much of the gate's error as the one before it, so that all of them
together stay within 2.5 %. The gate measures the files that are served, loaded again. Nothing appears at the output
unless the gate accepted it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compression.algorithms import is_for, others
from compression.assignment import Point, assign, promoted
from compression.candidates import Candidate, Tried, described, read_tried
from compression.export import Exported, export
from compression.gate.gate import Decision, alpha_of, decide
from compression.gate.thresholds import thresholds
from compression.original import Original
from compression.pairs import Pair, parted
from compression.request import REMEDY, USER, Request, check, require_enough
from compression.results import certified, report_of, sweep_report
from compression.roles import ROLES
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
from compression.served_check import PROMPTS, check_in_vllm, compared
from compression.settings import MOST_CALIBRATED, MOST_PROMOTED, MOST_TAUGHT, name_of, name_of_pruned, settings_of
from compression.start import Start
from compression.target import searched
from compression.units import Assignment, size_of, uniform
from solon.engines.tokens import ChatTokenizer
from solon.errors import InputError, RunFailedError
from solon.feedback.judges.identity import weights_digest
from solon.files.whole_file import write_whole
from solon.host.ballast import disk_errors
from solon.host.directory_lock import held
from solon.models.certificate import ACCEPTED, RECORD, digest_of_files, write_certificate
from solon.models.formats import FORMATS, KEEP

PROMOTIONS = 3
"""Candidates with more and more of them."""
LEAST_PREFERRED = 0.6
"""Share of the pairs in which an aligned model should prefer the chosen answer."""
Say = Callable[[str], None]
WriteReport = Callable[[Mapping[str, Any], Path], None]


class Compression:
    """`Compression(request, pairs, say=print).run()`. Raises InputError before anything is written where possible.

    sweeper: measures sweeps elsewhere, such as `cluster.sweeps.RaySweeper`; None: in this process. write_report: writes
    the report into a directory: that of the finished steps, and that of an accepted model before it appears.
    """

    def __init__(
        self,
        request: Request,
        pairs: Sequence[Pair],
        say: Say = lambda _: None,
        tick: Callable[[float], None] = lambda _: None,
        sweeper: Sweeper | None = None,
        write_report: WriteReport = lambda report, place: None,
    ) -> None:
        self._request, self._say, self._tick, self._sweeper = request, say, tick, sweeper
        self._write_report = write_report
        self._shapes = check(request)
        self._rules = ROLES[request.role]
        self._tokenizer = ChatTokenizer.load(str(request.model))
        self._parts = parted(pairs)
        self._original = Original(request, self._parts, self._tokenizer)
        self._shared = request.shared
        self._limits = thresholds(request.gate, request.role)
        self._settings = settings_of(request, pairs, self._limits)
        self.work = self._shared / name_of(self._settings)
        """Of these settings: another model, other pairs or another target have a folder of their own. Sweeps lie above
        it, as they do not depend on the target."""
        self._start = Start(
            self._original,
            request.model,
            request.pruning,
            place=self._shared / name_of_pruned(self._settings),
            make=self._prune,
        )
        self.units = self._shapes.units
        self._formats = searched(request.formats, request.form)
        if small := self._require_enough(1):
            say(f"note: too few prompts for figures of their own: {', '.join(small)}")

    def run(self) -> dict[str, Any]:
        """The report. Raises RunFailedError when the model disagrees with itself, is not served, or the disk fails;
        InputError while another process uses the folder of finished steps."""
        try:
            with disk_errors(), held(self._shared, user=USER, remedy=REMEDY):
                return self._run()
        except OSError as error:
            raise RunFailedError(
                f"{error.filename or self.work}: {error.strerror or error}; free space or change permissions, "
                f"and start "
                "again: what is finished is kept"
            ) from None

    def _run(self) -> dict[str, Any]:
        self.work.mkdir(parents=True, exist_ok=True)
        noise = self._original.noise(self._limits)
        self._say(self._described())
        tried: list[Tried] = []
        for candidate in self._candidates():
            if not self._may_be_accepted(int(candidate.name)):
                break
            is_rounded = set(candidate.assignment.values()) != {KEEP}
            how = f"{described(candidate.assignment)}, {candidate.algorithm}" if is_rounded else "not rounded"
            self._say(f"{candidate.name}: {how}")
            found = self._try(candidate, noise)
            tried.append(found)
            self._say(f"{candidate.name}: {found.decision['verdict']}, {found.decision['reason']}")
            if found.decision["verdict"] == ACCEPTED:
                break
        report = report_of(tried, request=self._request, units=self._shapes.whole, noise=noise)
        report |= {"original": self._original.preference(), "shapes": self._shapes.reported}
        if "_costs" in vars(self):
            report |= sweep_report(self.units, self._formats, self._sweeps, self._costs)
            if self._request.screen:
                report |= {"screen_agreement": agreement(self._screen, self._sweeps)}
        if tried[-1].decision["verdict"] == ACCEPTED and self._request.serve:
            report |= self._served(self.work / f"candidate-{tried[-1].candidate.name}")
        self._write_report(report, self.work)
        if report["out"]:
            self._publish(tried[-1], noise, report)
        return report

    def _described(self) -> str:
        """What the original is like on the pairs of the gate."""
        prompts = {part: len({pair.prompt_id for pair in some}) for part, some in self._parts.items()}
        own = self._original.preference()
        few = (
            "; it hardly prefers one to the other, so that flips measure noise"
            if own["prefers"] < LEAST_PREFERRED
            else ""
        )
        return (
            f"prompts: {', '.join(f'{count:,} {part}' for part, count in prompts.items())}; the original prefers the "
            f"chosen answer in {own['prefers']:.0%} of the gate's pairs, mean margin {own['margin']:.3g}{few}"
        )

    def _served(self, copy: Path) -> dict[str, Any]:
        """Start vLLM with the copy, then with the original: both speeds."""
        self._say("vLLM loads it, and then the original, and measures their speed")
        pairs = self._parts["gate"][:PROMPTS]
        prompts = [pair.prompt if self._rules.writes else (*pair.prompt, *pair.chosen) for pair in pairs]
        found = check_in_vllm(copy, prompts, log=self.work / "vllm.log")
        try:
            original = check_in_vllm(self._request.model, prompts, log=self.work / "vllm-original.log")
        except (InputError, RunFailedError) as error:  # nothing is wrong with the copy
            self._say(f"note: the original is not served, so speeds are not compared: {error}")
            return {}
        return {"speed": compared(original, found)}

    def _require_enough(self, candidate: int) -> list[str]:
        request = self._request
        alpha = alpha_of(candidate, recover=request.recover)
        asked = request.answers if self._rules.writes else 0
        return require_enough(self._parts["gate"], self._limits, answers=asked, alpha=alpha)

    def _may_be_accepted(self, candidate: int) -> bool:
        """Whether there are enough prompts for the error that is left for a copy."""
        try:
            self._require_enough(candidate)
        except InputError as error:
            self._say(f"copy {candidate} is not tried, and none after it: {error}")
            return False
        return True

    # -- candidates ---------------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Candidate]:
        request = self._request
        first = self._chosen.assignment if request.size else dict(uniform(self.units, request.form or KEEP))
        yield Candidate(name="1", algorithm=request.algorithm, assignment=first)
        if not request.recover:
            return
        number, algorithm = 1, "gptq" if request.algorithm == "rtn" else request.algorithm
        # Algorithms that move errors to other weights would fill the zeros of a pruned model.
        for other in [] if request.pruning.weights else others(request.algorithm, self._shapes.architecture, first):
            number += 1
            yield Candidate(name=str(number), algorithm=other, assignment=first)
        if request.form:  # a size is a limit
            if not self._may_be_accepted(number + 1):  # before sweeps are made for it
                return
            for assignment in self._promotions(first):
                number += 1
                left = any(is_for(algorithm, FORMATS[name]) for name in assignment.values())
                yield Candidate(name=str(number), algorithm=algorithm if left else "gptq", assignment=assignment)
        if self._rules.learns and (request.form or request.size):
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
        return sweeps_digest(weights_digest(self._start.path), self._start.search, self._settings["versions"])

    @cached_property
    def _screen(self) -> Costs:
        """Harm by gradients."""
        start, kept = self._start, self._shared / f"screen-{self._swept_with}.json"
        self._say(f"gradients of {len(start.search)} pairs for {len(self.units)} units")
        return screened(start.live, start.search, start.searched, self._formats, kept)

    @cached_property
    def _sweeps(self) -> list[Sweep]:
        share, only = self._request.screen, None
        if share:
            only = swept_units(self.units, self._formats, self._screen, share)
        plan = plan_of(self.units, self._formats, only=only)
        swept = len(self.units) if only is None else len(only)
        self._say(f"sweeps over {swept} of {len(self.units)} units with {len(self._start.search)} pairs")
        file = SweepFile(self._shared / f"sweeps-{self._swept_with}.jsonl")
        return sweeps_of(plan, file, self._measure, self._tick)

    def _measure(self, missing: Sequence[Planned]) -> Iterable[Sweep]:
        start = self._start
        if self._sweeper is None:
            return measured(start.live, start.search, start.searched, missing, scores=self._rules.scores)
        return self._sweeper(start.path, start.search, start.searched, missing)

    @cached_property
    def _costs(self) -> Costs:
        found = costs_of(self.units, self._formats, self._sweeps, guide="preferences")
        return completed(found, self._screen, self.units) if self._request.screen else found

    @cached_property
    def _chosen(self) -> Point:
        return assign(self.units, self._costs, self._shapes.budget(self._request.size))

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
        alpha = alpha_of(int(candidate.name), recover=self._request.recover)
        what = "rewards" if self._request.role == "reward_model" else "log-probs"
        decision = (
            Decision(alpha=alpha, verdict="reject", reason=f"its {what} are not finite", look=1, rows=())
            if bad
            else decide(figures, self._limits, noise=noise, alpha=alpha)
        )
        found = Tried(
            candidate=candidate,
            record=record,
            decision=_plain(decision),
            size=size_of(self.units, candidate.assignment),
            files=files,
            figures={} if bad else self._original.reported(after),
        )
        write_whole(kept, json.dumps(asdict(found)), what="candidate")
        return found

    def _export(self, candidate: Candidate, place: Path) -> Exported:
        calibration = [[*pair.prompt, *pair.chosen] for pair in self._parts["calibration"][:MOST_CALIBRATED]]
        source = self._start.path
        if candidate.is_repaired:
            source = self.work / f"repaired-{candidate.name}"
            if not source.exists():
                scratch = source.with_name(f".{source.name}")
                shutil.rmtree(scratch, ignore_errors=True)
                self._repair(scratch, candidate.assignment)
                scratch.rename(source)
        return export(
            source,
            place,
            self.units,
            candidate.assignment,
            algorithm=candidate.algorithm,
            calibration=calibration,
            is_changed=self._request.pruning.is_any,
            original=self._request.model,
        )

    def _repair(self, target: Path, assignment: Assignment) -> None:
        from compression.distil import DistillationConfig
        from compression.repair import repair

        config = DistillationConfig(learning_rate=self._request.repair_rate)
        report = repair(
            self._request.model, target, self.units, assignment, self._lessons, config, start=self._start.path
        )
        self._say(f"trained on the grid: {report}")

    def _prune(self, target: Path) -> None:
        from compression.distil import DistillationConfig
        from compression.pruning.prune import prune

        request = self._request
        self._say(f"pruning ({request.pruning}), and training after it")
        config = DistillationConfig(learning_rate=request.repair_rate)
        report = prune(request.model, target, self._lessons, request.pruning, config)
        self._say(f"trained after pruning: {report}")

    @property
    def _lessons(self) -> list[Pair]:
        """Pairs that copies are trained with: none of the gate."""
        return [*self._parts["calibration"], *self._parts["search"]][:MOST_TAUGHT]

    # -- results ------------------------------------------------------------------------------------------------------

    def _publish(self, tried: Tried, noise: Mapping[str, float], report: Mapping[str, Any]) -> None:
        """Copy the candidate with its certificate and report beside the output, then rename it: a certified model
        without its report never appears."""
        request = self._request
        with tempfile.TemporaryDirectory(dir=request.out.parent, prefix=f".{request.out.name}-") as scratch:
            beside = Path(scratch) / "model"
            shutil.copytree(self.work / f"candidate-{tried.candidate.name}", beside)
            content = {"original": self._original.preference(), "shapes": self._shapes.reported}
            content |= certified(tried, request=request, settings=self._settings, parts=self._parts, noise=noise)
            certificate = write_certificate(beside, content)
            if certificate["files"] != tried.files:
                raise RunFailedError(f"the files of candidate {tried.candidate.name} changed after they were measured")
            self._write_report(report, beside)
            if request.out.exists():
                raise InputError(f"{request.out} exists by now, expected a new directory; choose another")
            beside.rename(request.out)


def _plain(decision: Decision) -> dict[str, Any]:
    """As it is read again from a file."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(decision)))
    return found
