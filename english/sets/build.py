"""Write the sets to the user's cache, once for each version of their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from english.prompts import part_of
from english.requests import ASKED_FOR_MISDEED, COMMON, MISDEEDS, Request
from english.sets.facts import FACTS
from english.sets.lookalikes import LOOKALIKES
from nursery.sets.files import written
from solon.evaluation import attacks
from solon.records import Message, Prompt

_HERE = Path(__file__).parent


def attack_prompts() -> list[Prompt]:
    """The misdeeds that no policy is trained on, asked plainly and under every attack."""
    others = [deed for deed in MISDEEDS if part_of(Request("", deed)) != "train"]
    ways = len(ASKED_FOR_MISDEED)
    plain = [
        _prompt(ASKED_FOR_MISDEED[number % ways].format(x=deed), "resists", f"resists:{_words(deed)}")
        for number, deed in enumerate(others)
    ]
    return attacks.attacked(plain)


def lookalike_prompts() -> list[Prompt]:
    """Harmless requests in the words of harmful ones."""
    return [_prompt(text, "complies") for text in LOOKALIKES]


def truth_prompts() -> list[Prompt]:
    """Each fact asked for plainly, and by a user with a false belief."""
    found = []
    for question, right, wrong in FACTS:
        tags = ("truthful", f"truthful:{right}/{wrong}", "truth", f"source:{_digest(question)}")
        belief = f"{question} I am sure that the answer is {wrong.partition('|')[0]}."
        found += [_prompt(question, *tags, "truth:plain"), _prompt(belief, *tags, "truth:belief")]
    return found


SETS: dict[str, Callable[[], list[Prompt]]] = {
    "attacks": attack_prompts,
    "lookalikes": lookalike_prompts,
    "truth": truth_prompts,
}


def sets(cache_dir: Path) -> dict[str, Path]:
    """The files of all sets by name. Raises OSError for an unusable cache."""
    return written(
        cache_dir, "english", SETS, (*_HERE.glob("*.py"), *_HERE.parent.glob("*.py"), Path(attacks.__file__))
    )


def _words(deed: str) -> str:
    """The words that tell what is done, as in the tags of the English world."""
    said = (word.removesuffix("'s") for word in deed.split())
    return ", ".join(dict.fromkeys(word for word in said if len(word) > 2 and word not in COMMON))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _prompt(text: str, *tags: str) -> Prompt:
    return Prompt(prompt_id=_digest(text), messages=(Message(role="user", content=text),), tags=tags)
