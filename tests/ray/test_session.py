"""The cluster of a run, from its start to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import os, signal, time
from cluster.ray_session.session import cluster
before = signal.getsignal(signal.SIGTERM)
try:
    with cluster(dashboard=False):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted, handler given back:", signal.getsignal(signal.SIGTERM) == before)
"""


def test_sigterm_before_training_interrupts_as_ctrl_c_does():
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted, handler given back: True\n", done.stderr[-2000:]
