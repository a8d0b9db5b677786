"""Runs a command that ends when its parent ends: `python -m solon.host.child COMMAND ...`.

The parent holds the other end of standard input. When that closes, however the parent ended, the command is asked to
stop, and killed if it does not.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

GRACE_S = 20.0
"""From SIGTERM to SIGKILL."""


def main(command: list[str]) -> int:
    """Exit code of the command; 128 + n when signal n ended it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(number: int) -> None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return

    def watch() -> None:
        while os.read(0, 4096):
            pass
        end(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            end(signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _: end(got))
    code = process.wait()
    end(signal.SIGKILL)  # processes of its own that it did not end
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
