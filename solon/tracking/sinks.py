"""The trackers by name, and the command that feeds them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from solon.errors import InputError, RunFailedError
from solon.tracking.follow import PERIOD_S, Follower
from solon.tracking.sink import Sink


def _tensorboard(place: str, run: Path) -> Sink:
    from solon.tracking.tensorboard import TensorBoardSink

    return TensorBoardSink(Path(place) / run.name)


def _wandb(project: str, run: Path) -> Sink:
    from solon.tracking.wandb import WandbSink

    return WandbSink(project, run, run.parent / "wandb")


def _mlflow(uri: str, run: Path) -> Sink:
    from solon.tracking.mlflow import MlflowSink

    return MlflowSink(uri, run)


SINKS: Mapping[str, Callable[[str, Path], Sink]] = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}


def open_sink(name: str, place: str, run: Path) -> Sink:
    """Raises InputError when the tracker's package is missing, or it cannot be opened."""
    try:
        return SINKS[name](place, run)
    except ImportError as error:
        raise InputError(
            f"{name}: {error}; "
            + ("its requirements conflict with Solon's: " if name == "mlflow" else "install it here, or ")
            + "run `python -P -m solon.tracking` with the Python of an environment that has it"
        ) from None
    except Exception as error:  # of the tracker's own kinds
        raise InputError(f"{name} {place!r} cannot be opened: {type(error).__name__}: {error}") from None


def track(run: Path, places: Mapping[str, str], *, follow: bool, say: Callable[[str], None]) -> None:
    """Send a run to trackers: all that is there, and with `follow` what comes until the run has ended.

    places: by tracker's name its directory, project or URI. Raises InputError; RunFailedError when a tracker failed.
    """
    if not (run / "config.json").is_file():
        raise InputError(f"{run} is not a run directory, expected config.json in it; look with `ls {run}`")
    follower = Follower(run, [open_sink(name, place, run) for name, place in places.items()], say=say)
    try:
        while not follower.poll() and follow and not follower.failed:
            time.sleep(PERIOD_S)
    finally:
        follower.close()
    if follower.failed:
        raise RunFailedError("a tracker failed; start the command again")
