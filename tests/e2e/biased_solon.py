"""`solon` with a training judge that has a known fault: `python -m tests.e2e.biased_solon train RUN.toml ...`

Engines, learner and auditing judge are real. `SOLON_BIAS` is JSON, the arguments of `BiasedJudge`: {"bias": "length",
"strength": 3.0}. Empty: the judge is unchanged.
"""

from __future__ import annotations

import json
import os
from typing import Any

import ray

from actors.judge import JudgeShell
from cluster.pools.judge import JudgeRole
from solon.cli.main import main
from solon.feedback.labeler import Labeler
from solon.feedback.trials.biased import BiasedJudge

BIAS: dict[str, Any] = json.loads(os.environ.get("SOLON_BIAS", "{}"))


class BiasedShell(JudgeShell):
    """The training judge with a fault; the auditing one is unchanged."""

    def __init__(self, source: Any, feedback: Any, constitution: Any, *, name: str, **options: Any) -> None:
        super().__init__(source, feedback, constitution, name=name, **options)
        if BIAS:
            self._labeler = Labeler(BiasedJudge(self._judge, **BIAS), config=feedback, constitution=constitution)


if __name__ == "__main__":
    biased = ray.remote(max_restarts=0, max_task_retries=0)(BiasedShell)
    main(roles={"judge": JudgeRole(biased)})
