"""The base of every stage: the pools and stages that it needs, and its work."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cluster.config.sections import Section

if TYPE_CHECKING:
    from cluster.session import RunSession


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolNeed:
    """A pool that a stage names."""

    key: str
    """The key of the stage, for messages."""
    name: str
    role: str


class Stage(Section):
    """One part of a run. A class in a new file of this folder, with `kind` and `type: Literal[kind]`, is a new stage.

    Keys of `moved` are settings of the run that may stand in the stage; a pipeline file is read as if they stood in
    their place in the run file.
    """

    kind: ClassVar[str] = ""
    """The name by which pipeline files refer to it."""
    moved: ClassVar[Mapping[str, str]] = {}
    """Keys of the stage, and the key of the run file that each one sets."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The result of an earlier stage that this one needs."""
    makes: ClassVar[tuple[str, ...]] = ()
    """The result that later stages may need."""
    serves: ClassVar[str] = ""
    """The type of a later stage without which this one has no effect."""
    is_once: ClassVar[bool] = False
    """A run has at most one."""

    type: str
    name: str = ""
    """Distinguishes stages of one type; empty: it is the only one, or its place distinguishes it."""

    def pools(self) -> Sequence[PoolNeed]:
        """The pools that it names."""
        return ()

    @abstractmethod
    async def run(self, session: RunSession) -> bool:
        """Whether the work was done; False: the run was stopped first, and `--resume` does it."""
