"""Whether stages can run in their order on these pools. Pure; every refusal names the nearest valid choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from cluster.config.pools import PoolSpec
from cluster.pools import known_roles
from cluster.stages.base import PoolNeed, Stage
from solon.errors import InputError, nearest


def check_stages(stages: Sequence[Stage], pools: Mapping[str, PoolSpec], *, source: str) -> None:
    """Raises InputError for the first problem."""
    _check_roles(pools, source)
    named = set()
    for number, stage in enumerate(stages, start=1):
        for need in stage.pools():
            _check_pool(need, pools, f"{source}: stages[{number}] ({stage.type})")
            named.add(need.name)
    _check_names(stages, source)
    _check_order(stages, source)
    if unused := [name for name in pools if name not in named]:
        raise InputError(
            f"{source}: no stage names the pool {unused[0]!r}, which would be started for nothing; name it in a stage, "
            "or remove it"
        )
    training = next(stage for stage in stages if "trained policy" in stage.makes)
    _check_sizes(pools, source, trained={need.name for need in training.pools()})


def _check_sizes(pools: Mapping[str, PoolSpec], source: str, *, trained: Collection[str]) -> None:
    """Refuses pools and workers that would be started and not used."""
    roles = known_roles()
    for name, pool in pools.items():
        if roles[pool.role].is_single and pool.size > 1:
            raise InputError(
                f"{source}: pools.{name} has the role {pool.role} and the size {pool.size}, expected 1: only one "
                f"worker of it is asked; set pools.{name}.size = 1"
            )
        alike = [other for other, spec in pools.items() if spec.role == pool.role]
        alike.sort(key=lambda other: other not in trained)  # the one that receives the weights is kept
        if roles[pool.role].is_once and len(alike) > 1:
            size = sum(pools[other].size for other in alike)
            raise InputError(
                f"{source}: {', '.join(f'pools.{other}' for other in alike)} have the role {pool.role}, expected "
                f"one pool of this role in a run: only one receives the trained weights; keep one: remove "
                f"{', '.join(f'pools.{other}' for other in alike[1:])}, name {alike[0]!r} in every stage and set "
                f"pools.{alike[0]}.size = {size}"
            )


def _check_roles(pools: Mapping[str, PoolSpec], source: str) -> None:
    roles = sorted(role for role in known_roles() if role != "learner")
    for name, pool in pools.items():
        if pool.role not in roles:
            raise InputError(
                f"{source}: pools.{name} has the role {pool.role!r}, expected one of {', '.join(roles)}"
                f"{nearest(pool.role, roles)}"
            )
        if not pool.model:
            raise InputError(f"{source}: pools.{name} has no model, expected a directory or a hub name; name one")


def _check_pool(need: PoolNeed, pools: Mapping[str, PoolSpec], place: str) -> None:
    fitting = [name for name, pool in pools.items() if pool.role == need.role and pool.size]
    if need.name not in pools or pools[need.name].role != need.role:
        got = f"the pool {need.name!r}, which {_what(need, pools)}"
        there = f"one of {', '.join(fitting)}" if fitting else f"a pool of role {need.role}, and there is none"
        change = f"set {need.key} = {_closest(need.name, fitting)!r}" if fitting else f"add [pools.{need.name}]"
        raise InputError(f"{place} names {got}; expected {there}; {change}")
    if not pools[need.name].size:
        other = f", or {need.key} = {fitting[0]!r}" if fitting else ""
        raise InputError(
            f"{place} needs the pool {need.name!r}, whose size is 0, expected at least 1; set pools.{need.name}.size = "
            f"1{other}"
        )


def _what(need: PoolNeed, pools: Mapping[str, PoolSpec]) -> str:
    return f"has the role {pools[need.name].role}" if need.name in pools else "is not there"


def _closest(name: str, names: Sequence[str]) -> str:
    hint = nearest(name, names)
    return next((one for one in names if f"`{one}`" in hint or f"'{one}'" in hint), names[0])


def _check_names(stages: Sequence[Stage], source: str) -> None:
    counts = Counter((stage.type, stage.name) for stage in stages)
    for (kind, name), count in counts.items():
        if count > 1 and not any(stage.is_once for stage in stages if stage.type == kind):
            raise InputError(
                f"{source}: {count} stages of type {kind} have the name {name!r}, expected different names; call one "
                f"`{name or kind}-2`, say"
            )


def _check_order(stages: Sequence[Stage], source: str) -> None:
    made: list[str] = []
    for number, stage in enumerate(stages, start=1):
        place, later = f"{source}: stages[{number}] ({stage.type})", stages[number:]
        if stage.is_once and any(other.type == stage.type for other in later):
            raise InputError(f"{place} is there twice, expected one in a run; remove one, or start a run for each")
        for need in stage.needs:
            if need in made:
                continue
            maker = next((other for other in later if need in other.makes), None)
            change = f"move it after {maker.type}" if maker else f"add a stage that makes it{_makers(need)}"
            raise InputError(f"{place} needs the {need} of an earlier stage, and none makes it; {change}")
        if stage.serves and not any(other.type == stage.serves for other in later):
            earlier = any(other.type == stage.serves for other in stages[: number - 1])
            change = f"move it before {stage.serves}" if earlier else f"add a stage of type {stage.serves} behind it"
            raise InputError(f"{place} does nothing without a later stage of type {stage.serves}; {change}")
        made += stage.makes
    if "trained policy" not in made:
        raise InputError(f"{source} has no stage that trains, expected one of type rlaif; add one")


def _makers(need: str) -> str:
    from cluster.stages import known_stages

    makers = sorted(kind for kind, stage in known_stages().items() if need in stage.makes)
    return f", of type {' or '.join(makers)}" if makers else ""
