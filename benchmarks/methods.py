"""Methods of alignment on the nursery's models: what each gives, staleness, reward models, revisions, kills.

    python benchmarks/methods.py [--parts roads reward_model kills staleness constitutional] [--quick] [--json PATH]

roads: every method of `examples/compare.toml` against the starting policy, three seeds. reward_model: agreement with
the judge on held-out pairs, and the best of eight answers by it against a random one, graded by programs. kills: 20
SIGKILLs of an alignment. staleness: asynchronous and synchronous training, five seeds. constitutional: revisions of
SmolLM2 against its first answers, graded by programs; its principles ask for what the programs count.

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


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--folder", type=Path, help="work in this folder; else in one that is removed")
    options = parser.parse_args()
    rows: list[Row] = []
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in options.parts:
            place = folder.absolute() / part
            place.mkdir(parents=True, exist_ok=True)
            print(f"{part} ...", flush=True)
            rows += PARTS[part](place, quick=options.quick)
    report("methods", rows, options.json)


if __name__ == "__main__":
    main()
