"""The prompts of a run, training and held out: read, rendered, counted. Unusable ones are left out or end the run
before it starts, as `[data]` says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.config.run_file import RunFile
from solon.engines.admission import ADD_ROWS
from solon.errors import InputError
from solon.files.data_config import DataConfig
from solon.files.prompts import PromptFile, load_prompts, prompt_id
from solon.files.rows import Place, Refused, described
from solon.pipeline.prompt_screen import Outcome, Screening, screen
from solon.records import Prompt

COUNTS = ("read", "used", "broken", "refused", "overlong", "cut", "duplicates", "overlap")
"""Counts of rows read and prompts used, and in between: broken rows, prompts that the template refuses, that are too
long, that were too long and are kept cut, that repeat an earlier one, that are also held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInputs:
    """Usable prompts, and the problems of the others."""

    prompts: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    counts: Mapping[str, Mapping[str, int]]
    """COUNTS, of `prompts` and `heldout`."""
    refused: Mapping[str, tuple[Refused, ...]]
    """Entries for the quarantine, of `prompts` and `heldout`."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_prompts(run: RunFile, *, fetch: bool = False, say: Callable[[str], None] | None = None) -> PromptInputs:
    """fetch: the tokenizer of a hub name that is not on this machine. say: receives progress notes. Raises
    InputError."""
    data = run.data
    train = _Pile(load_prompts(run.prompts, read=data, max_bad_share=data.max_bad_share))
    piles = {"prompts": train}
    if run.evaluate.prompts:
        heldout = load_prompts(run.evaluate.prompts, read=data.heldout, max_bad_share=data.max_bad_share)
        piles["heldout"] = _Pile(heldout)
    for pile in piles.values():
        pile.count_duplicates(data)
    if "heldout" in piles:
        train.count_overlap(piles["heldout"], data)
    room = run.rollout.max_model_len - run.rollout.max_tokens
    how = Screening(
        model=run.policy,
        room=room,
        cuts=data.overlong == "cut",
        trust_remote_code=run.rollout.trust_remote_code,
        chat=run.rollout,
        fetch=fetch,
    )
    unrendered = _screen(piles.values(), how, data, say)
    return PromptInputs(
        prompts=train.prompts,
        heldout=piles["heldout"].prompts[: run.evaluate.max_prompts] if "heldout" in piles else (),
        counts={name: pile.counts() for name, pile in piles.items()},
        refused={name: tuple(pile.left_out) for name, pile in piles.items()},
        warnings=(*(warning for pile in piles.values() for warning in pile.warnings), *unrendered),
        notes=tuple(note for pile in piles.values() for note in pile.notes),
    )


def _screen(piles: Iterable[_Pile], how: Screening, data: DataConfig, say: Callable[[str], None] | None) -> list[str]:
    """Renders all piles, each conversation once; warns where that is not possible."""
    piles = list(piles)
    wanted = {prompt.prompt_id: prompt.messages for pile in piles for prompt in pile.prompts}
    found = screen(list(wanted.values()), how, say=say, name=_namer(piles, list(wanted)))
    if found is None:
        return [
            f"policy model {how.model}: its tokenizer is not on this machine, so the prompts were not rendered; one "
            "that its chat template refuses, or that is too long, would end the run"
        ]
    outcomes = dict(zip(wanted, found, strict=True))
    for pile in piles:
        pile.apply(outcomes, how.room, data)
    return []


def _namer(piles: Sequence[_Pile], identities: Sequence[str]) -> Callable[[int], str]:
    """Names a prompt by its file and row."""

    def name(number: int) -> str:
        return next(found for pile in piles if (found := pile.name(identities[number])))

    return name


class _Pile:
    """The prompts of one file on their way into the run."""

    def __init__(self, file: PromptFile) -> None:
        self._path = file.path
        self._read = file.read
        self._total = len(file.prompts)
        self._rows: list[tuple[Place, Prompt]] = list(zip(file.places, file.prompts, strict=True))
        self._counts: Counter[str] = Counter(broken=len(file.bad))
        self.left_out: list[Refused] = list(file.bad)
        self.warnings: list[str] = file.warnings()
        self.notes: list[str] = file.notes()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(prompt for _, prompt in self._rows)

    def name(self, identity: str) -> str:
        """File and row of a prompt; empty: it is not in this file."""
        return next((f"{place} of {self._path}" for place, prompt in self._rows if prompt.prompt_id == identity), "")

    def counts(self) -> dict[str, int]:
        return {**{name: self._counts[name] for name in COUNTS}, "read": self._read, "used": len(self._rows)}

    def count_duplicates(self, data: DataConfig) -> None:
        first: dict[str, Place] = {}
        repeats = []
        for place, prompt in self._rows:
            earlier = first.setdefault(prompt.prompt_id, place)
            if earlier is not place:
                repeats.append(Refused(place=place, reason=f"repeats {earlier}"))
        self._settle(
            "duplicates", repeats, f"repeat an earlier one; {{}}, as data.duplicates = {data.duplicates!r} says",
            drops=data.duplicates == "drop",
        )  # fmt: skip

    def count_overlap(self, heldout: _Pile, data: DataConfig) -> None:
        held = {prompt.prompt_id: place for place, prompt in heldout._rows}
        both = [
            Refused(place=place, reason=f"is held out as well, {held[prompt.prompt_id]} of evaluate.prompts")
            for place, prompt in self._rows
            if prompt.prompt_id in held
        ]
        self._settle(
            "overlap", both, "are held out as well, so held-out scores would be too good; {}; set data.heldout_overlap",
            drops=data.heldout_overlap == "drop", is_error=data.heldout_overlap == "error",
        )  # fmt: skip

    def apply(self, outcomes: Mapping[str, Outcome], room: int, data: DataConfig) -> None:
        """Leaves out prompts that the template refuses or that are too long, or keeps the part that fits."""
        refused: list[Refused] = []
        beyond: list[Refused] = []
        overlong, cut = [], {}
        for place, prompt in self._rows:
            outcome = outcomes[prompt.prompt_id]
            if outcome.refused:
                (beyond if outcome.is_beyond else refused).append(Refused(place=place, reason=outcome.refused))
            elif outcome.cut is not None:
                cut[place] = Prompt(prompt_id=prompt_id(outcome.cut), messages=outcome.cut, tags=prompt.tags)
            elif outcome.is_overlong:
                overlong.append(Refused(place=place, reason=outcome.excess(room)))
        self._settle(
            "refused", refused, "are refused by the policy's chat template; {}; change them, or set data.refused",
            drops=True, is_error=data.refused == "error",
        )  # fmt: skip
        self._settle(
            "refused", beyond, f"hold tokens that the policy's embedding lacks; {{}}; {ADD_ROWS}",
            drops=True, is_error=data.refused == "error",
        )  # fmt: skip
        self._settle(
            "overlong", overlong,
            f"are longer than the {room} tokens that rollout.max_model_len less rollout.max_tokens leaves; {{}}; raise "
            "max_model_len, lower max_tokens, or set data.overlong",
            drops=True, is_error=data.overlong == "error",
        )  # fmt: skip
        self._counts.update(overlong=len(cut), cut=len(cut))
        if cut:
            self._rows = [(place, cut.get(place, prompt)) for place, prompt in self._rows]
            self.warnings.append(f"{self._path}: {self._share(len(cut))} were cut to {room} tokens")
        if not self._rows:
            raise InputError(
                f"prompt file {self._path}: none of {self._total:,} prompts can be used: {described(self.left_out)}; "
                + (ADD_ROWS if beyond else "change the prompts, the chat template or rollout.max_model_len")
            )

    def _settle(self, name: str, found: Sequence[Refused], what: str, *, drops: bool, is_error: bool = False) -> None:
        """Counts, reports and leaves out the prompts found."""
        self._counts[name] += len(found)
        if not found:
            return
        fate = "" if is_error else ("dropped; " if drops else "kept; ")
        what = what.replace("{}; ", fate).replace("{}", fate.removesuffix("; "))
        said = f"{self._share(len(found))} {what} ({described(found, most=3)})"
        if is_error:
            raise InputError(f"prompt file {self._path}: {said}")
        self.warnings.append(f"{self._path}: {said}")
        if drops:
            gone = {one.place for one in found}
            self._rows = [(place, prompt) for place, prompt in self._rows if place not in gone]
            self.left_out += found

    def _share(self, count: int) -> str:
        return f"{count:,} of {self._total:,} prompts ({count / self._total:.1%})"
