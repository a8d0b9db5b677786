"""What every stage is: what it needs of pools and of other stages, and what it does."""

from __future__ import annotations

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
    """Of the stage, for messages."""
    name: str
    role: str


class Stage(Section):
    """One part of a run. A class in a new file of this folder, with `kind` and `type: Literal[kind]`, is a new stage.

    Keys of `moved` are settings of the run that may stand in the stage; a pipeline file is read with them in their
    place in the run file.
    """

    kind: ClassVar[str] = ""
    """How a pipeline file names it."""
    moved: ClassVar[Mapping[str, str]] = {}
    """Keys of the stage, and the key of the run file where each is read from."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What an earlier stage must have made."""
    makes: ClassVar[tuple[str, ...]] = ()
    """What later stages may need."""
    serves: ClassVar[str] = ""
    """The type of a later stage without which this one does nothing."""
    is_once: ClassVar[bool] = False
    """A run has at most one."""

    type: str
    name: str = ""
    """Tells stages of one type apart; empty: it is the only one, or its place says it."""

    def pools(self) -> Sequence[PoolNeed]:
        """The pools that it names."""
        return ()

    async def run(self, session: RunSession) -> bool:
        """Whether it was done; False: the run was stopped first, and `--resume` does it."""
        raise NotImplementedError
