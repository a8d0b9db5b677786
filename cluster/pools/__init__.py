"""The roles of workers: one file each, found in this folder.

Start with `base`: a role makes the workers of a pool and gives each a guard. The present roles are `rollout`, `judge`,
`audit` and `learner`. A new role is one new file here; pipeline files name it as `role = "..."`.
May import: solon, actors (when workers are made), the run file.
"""

from __future__ import annotations

import sys

from cluster.config.registry import classes_in
from cluster.pools.base import Role


def known_roles() -> dict[str, Role]:
    """One instance of each role in this folder, by name."""
    return {name: role() for name, role in classes_in(sys.modules[__name__], Role, name="role").items()}  # type: ignore[type-abstract]
