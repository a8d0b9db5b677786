"""The file that names functions as judges.

# rewards.toml
deadline_s = 5
[programs]
is_json = "my_rewards.py:is_json"
short = "my_rewards.py:short"

    # my_rewards.py
    def is_json(messages, answer):      # messages: [{"role": "user", "content": "..."}, ...]
        try:
            json.loads(answer)
        except ValueError:
            return False
        return True

The keys are principles of the constitution. A number is the margin in nats, True and False are `TRUE` and -`TRUE`.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from solon.errors import InputError, nearest
from solon.files.text_file import read_text
from solon.files.toml_file import read_toml
from solon.files.validation import describe_invalid

TRUE = 2.0
"""Margin of True, nats."""
MAX_CHARACTERS = 4 * 1024 * 1024


class ProgramFile(BaseModel):
    """`ProgramFile.load("rewards.toml").programs["is_json"]`"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    programs: dict[str, str] = Field(min_length=1)
    """Functions by principle: `file.py:function`, the file relative to this one."""
    deadline_s: float = Field(10.0, gt=0, le=3600)
    """Longest call of a function. A later one is stopped and its verdict is invalid."""
    start_s: float = Field(60.0, gt=0, le=3600)
    """Longest import of the files."""
    _folder: Path = PrivateAttr(Path())

    @staticmethod
    def describes(raw: Any) -> bool:
        """Whether the content of a judge's file names programs."""
        return isinstance(raw, dict) and "programs" in raw

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises InputError, also when a file or a function that it names is missing. Runs none of them."""
        path = Path(path)
        return cls.of(read_toml(path, what="judge file"), path)

    @classmethod
    def of(cls, raw: dict[str, Any], path: Path) -> Self:
        """The same from the content of the file."""
        try:
            found = cls.model_validate(raw)
        except ValidationError as error:
            raise InputError(f"judge file {path}: {describe_invalid(cls, error)}") from None
        found._folder = path.parent.absolute()
        for principle, named in found.programs.items():
            _require_function(*found.place(principle), where=f"judge file {path}: programs.{principle} = {named!r}")
        return found

    def place(self, principle: str) -> tuple[Path, str]:
        """The file and the name of a principle's function. Raises InputError when it is not `file.py:function`."""
        named = self.programs[principle]
        file, colon, function = named.rpartition(":")
        if not colon or not file.endswith(".py") or not function.isidentifier():
            raise InputError(f"programs.{principle} is {named!r}, expected `file.py:function`; correct it")
        return self._folder / Path(file).expanduser(), function

    @cached_property
    def digest(self) -> str:
        """Identifies functions and deadline: the contents of the files that are named."""
        digest = hashlib.sha256(repr((sorted(self.programs.items()), self.deadline_s)).encode())
        for file in sorted({self.place(one)[0] for one in self.programs}):
            digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def _require_function(file: Path, function: str, *, where: str) -> None:
    """Raises InputError unless the file defines the function."""
    if not file.is_file():
        raise InputError(f"{where}: there is no file {file}, expected one with the function; check the path")
    try:
        tree = ast.parse(read_text(file, what="program", most=MAX_CHARACTERS))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: {file} is not Python: {error}; correct it") from None
    if any(isinstance(node, ast.AsyncFunctionDef) and node.name == function for node in tree.body):
        raise InputError(f"{where}: {function!r} is an `async def`, expected a plain function; remove async")
    names = [
        name
        for node in tree.body
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef)
            else [alias.asname or alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else [target.id for target in node.targets if isinstance(target, ast.Name)]
            if isinstance(node, ast.Assign)
            else []
        )
    ]
    if function not in names:
        raise InputError(f"{where}: {file.name} defines no {function!r}{nearest(function, names)}; correct the name")
