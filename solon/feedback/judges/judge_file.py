"""Judges that a file describes: an endpoint, or a person's own functions."""

from __future__ import annotations

from pathlib import Path

from solon.feedback.judges.endpoint_judge import EndpointFile
from solon.feedback.judges.program_file import ProgramFile
from solon.files.toml_file import read_toml

JudgeFile = EndpointFile | ProgramFile


def load_judge_file(path: str | Path) -> JudgeFile:
    """The content says which: a table `programs`, or `endpoint`. Raises InputError."""
    path = Path(path)
    if ProgramFile.describes(raw := read_toml(path, what="judge file")):
        return ProgramFile.of(raw, path)
    return EndpointFile.load(path)
