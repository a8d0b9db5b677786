"""Methods of alignment on the nursery's models: what each gives, staleness, reward models, revisions, kills.

    python benchmarks/methods.py [--parts roads reward_model kills ...] [--quick] [--json PATH]

roads: every method of `examples/compare.toml` against the starting policy, three seeds. reward_model: agreement with
the judge on held-out pairs, and the best of eight answers by it against a random one, graded by programs. kills: 20
SIGKILLs of an alignment. staleness: asynchronous and synchronous training, five seeds. constitutional: revisions of
SmolLM2 against its first answers, graded by programs; its principles ask for what the programs count. english: SFT, DPO
and a reward model of SmolLM2, one seed.

`--folder` keeps all files; a second start uses what is finished.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report
from benchmarks._methods_parts import PARTS
from benchmarks._methods_reward import english, reward_model

ALL = PARTS | {"reward_model": reward_model, "english": english}


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=sorted(ALL), default=list(ALL))
    parser.add_argument("--folder", type=Path, help="work in this folder; else in one that is removed")
    options = parser.parse_args()
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in options.parts:
            place = folder.absolute() / part
            place.mkdir(parents=True, exist_ok=True)
            print(f"{part} ...", flush=True)
            rows += ALL[part](place, quick=options.quick)
    report("methods", rows, options.json)


if __name__ == "__main__":
    main()
