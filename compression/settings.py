"""All that the result of a compression depends on, and the names of its work folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from compression.flips import BETA
from compression.gate.gate import LOOKS, alpha_of
from compression.gate.thresholds import Thresholds
from compression.original import MOST_SEARCHED
from compression.pairs import SHARES, Pair, digest_of_pairs
from compression.quantise import PACKAGES
from compression.request import Request
from solon.artifacts.code import code_digest
from solon.feedback.judges.identity import weights_digest

MOST_PROMOTED = 0.15
"""Share of the units that recovery may give more bits."""
MOST_TAUGHT = 2048
"""Pairs of a training."""
CODE = ("compression.export", "compression.repair", "compression.pruning.prune", "compression.roles")
"""What makes and measures copies."""
MOST_CALIBRATED = 512
"""Pairs that algorithms read."""


def settings_of(request: Request, pairs: Sequence[Pair], limits: Thresholds) -> dict[str, Any]:
    """In plain values."""
    return {
        "model": weights_digest(request.model),
        "pairs": digest_of_pairs(pairs),
        "target": request.form or request.size,
        "formats": sorted(request.formats),
        "screen": request.screen,
        "algorithm": request.algorithm,
        "role": request.role,
        "gate": limits.model_dump(),
        "recover": request.recover,
        "repair_rate": request.repair_rate,
        "answers": request.answers,
        "rules": [
            alpha_of(1, recover=request.recover), LOOKS, SHARES, BETA, MOST_PROMOTED, MOST_SEARCHED, MOST_CALIBRATED,
            MOST_TAUGHT,
        ],
        "versions": {package: version(package) for package in PACKAGES},
        "pruning": request.pruning.model_dump(),
        "code": code_digest(*CODE),
    }  # fmt: skip


def name_of(settings: Mapping[str, Any]) -> str:
    """Of the folder of these settings: another model, other pairs or another target have one of their own."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def name_of_pruned(settings: Mapping[str, Any]) -> str:
    """Of a pruned copy, which does not depend on the target."""
    names = ("model", "pairs", "role", "pruning", "repair_rate", "versions", "code")
    return f"pruned-{name_of({name: settings[name] for name in names})}"
