"""What a compression leaves: the content of the certificate, and the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compression.assignment import front
from compression.candidates import Tried, described
from compression.gate.gate import WRITTEN
from compression.pairs import Pair, Part
from compression.request import Request
from compression.roles import ROLES
from compression.sensitivity import Costs, Sweep, ranking_agreement
from compression.units import Unit, size_of, uniform
from solon.models.certificate import ACCEPTED
from solon.models.formats import KEEP


def certified(
    tried: Tried,
    *,
    request: Request,
    settings: Mapping[str, Any],
    parts: Mapping[Part, Sequence[Pair]],
    noise: Mapping[str, float],
) -> dict[str, Any]:
    """What the certificate of an accepted candidate says beside its digests."""
    return {
        "role": request.role,
        "verdict": tried.decision["verdict"],
        "reason": tried.decision["reason"],
        "source": settings["model"],
        "is_repaired": tried.candidate.is_repaired,
        "candidate": int(tried.candidate.name),
        "alpha": tried.decision["alpha"],
        "pairs": settings["pairs"],
        "prompts": {part: len({pair.prompt_id for pair in some}) for part, some in parts.items()},
        "thresholds": settings["gate"],
        **not_measured(request),
        "noise": dict(noise),
        "rows": tried.decision["rows"],
        "algorithm": tried.candidate.algorithm,
        "assignment": tried.candidate.assignment,
        **({"pruning": request.pruning.model_dump()} if request.pruning.is_any else {}),
        "versions": tried.record["versions"],
    }


def not_measured(request: Request) -> dict[str, list[str]]:
    """Figures that were left out by a setting; empty: none."""
    left_out = ROLES[request.role].writes and not request.answers
    return {"not_measured": [WRITTEN]} if left_out else {}


def report_of(
    tried: Sequence[Tried], *, request: Request, units: Sequence[Unit], noise: Mapping[str, float]
) -> dict[str, Any]:
    """The report of all candidates; the last one decides."""
    whole = size_of(units, uniform(units, KEEP))
    last = tried[-1]
    return {
        "model": str(request.model),
        "out": str(request.out) if last.decision["verdict"] == ACCEPTED else None,
        "verdict": last.decision["verdict"],
        "reason": last.decision["reason"],
        **not_measured(request),
        **({"pruning": request.pruning.model_dump()} if request.pruning.is_any else {}),
        "linear_bytes": {"before": whole, "after": last.size, "in_16_bits": whole * 2 // units[0].itemsize},
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


def sweep_report(
    units: Sequence[Unit], formats: Sequence[str], sweeps: Sequence[Sweep], costs: Costs
) -> dict[str, Any]:
    """The part of a report about sensitivity."""
    whole = size_of(units, uniform(units, KEEP))
    tau = ranking_agreement(units, formats, sweeps)
    return {
        "front": [{"share": point.size / whole, "cost": point.cost} for point in front(units, costs)],
        "ranking_agreement": tau if math.isfinite(tau) else None,
        "costs": [{"unit": unit, "format": form, "cost": cost} for (unit, form), cost in sorted(costs.items())],
    }
