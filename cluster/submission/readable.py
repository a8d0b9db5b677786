"""What `solon check` checks of a run, before it is submitted, where its models and files can be read here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from cluster.pipeline_file import load_run
from cluster.preflight.checks import check_inputs
from cluster.submission.paths import Named
from solon.files.marks import NamesFile, NamesModel, values
from solon.models.given_names import is_gguf, is_given_name


def check_readable(
    file: Path, paths: Collection[Named], *, overrides: Sequence[str], folder: Path, required: Sequence[str]
) -> list[str]:
    """Warnings, and a note on what could not be checked. Raises InputError for a run that would be refused there.

    folder: that of relative paths in overrides. required: variables that the cluster's machines have.
    """
    with contextlib.chdir(folder):
        run = load_run(file, overrides=overrides)
    made = [
        name for name in (*values(run, NamesModel), *values(run, NamesFile)) if is_given_name(name) or is_gguf(name)
    ]
    away = [named.written for named in paths if not named.is_pattern and not named.place.exists()]
    unset = [name for name in required if not os.environ.get(name)]
    for what, found in (("made there", made), ("not on this machine", away), ("not set here", unset)):
        if found:
            return [f"models, lengths and prompts are checked on the cluster only: {', '.join(found)}: {what}"]
    # Stores and their credentials are the cluster's.
    inputs = check_inputs(run.model_copy(update={"checkpoint_url": ""}))
    return [*inputs.warnings, *inputs.notes]
