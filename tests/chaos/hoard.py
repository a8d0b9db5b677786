"""Another program fills the object store for a while: `python -m tests.chaos.hoard --mib 384 --seconds 4`."""

from __future__ import annotations

import argparse
import time

import numpy as np
import ray

PIECE_MIB = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, required=True, help="more than the store has, so that others are spilled")
    parser.add_argument("--seconds", type=float, required=True, help="how long it is held")
    options = parser.parse_args()
    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    held = [ray.put(np.full(PIECE_MIB << 20, n, np.uint8)) for n in range(options.mib // PIECE_MIB)]
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        # Read again, so that spilled objects return and evict others.
        for reference in held:
            ray.get(reference)
        time.sleep(0.2)
    ray.shutdown()


if __name__ == "__main__":
    main()
