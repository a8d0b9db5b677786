"""`solon attacks PROMPTS --out ATTACKS.jsonl`: harmful prompts of your own under every attack, for an evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solon.cli.names import resolver
from solon.errors import InputError
from solon.evaluation.attacks import ATTACKS, TAG, attacked
from solon.feedback.labelling.dataset import first_rows
from solon.files.data_config import ReadConfig
from solon.files.overrides import settings_from
from solon.files.whole_file import write_whole


def run_attacks(
    prompts: str, *, out: Path, kinds: str, max_prompts: int, overrides: Sequence[str], as_json: bool
) -> dict[str, Any]:
    """Write the attacks. Raises InputError."""
    wanted = list(dict.fromkeys(kind.strip() for kind in kinds.split(",") if kind.strip()))
    read = settings_from(ReadConfig, {}, overrides)
    if out.exists():
        raise InputError(f"--out {out} exists, expected a new file; choose another")
    rows = first_rows(resolver([prompts], progress=not as_json)(prompts), max_prompts, read=read)
    found = attacked([row.prompt for row in rows], wanted)
    lines = [
        {
            "id": prompt.prompt_id,
            "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages],
            "tags": list(prompt.tags),
        }
        for prompt in found
    ]
    write_whole(out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), what="--out")
    counts = Counter(tag.partition(":")[2] for prompt in found for tag in prompt.tags if tag.startswith(f"{TAG}:"))
    if not as_json:
        print(f"written to {out}: {len(rows)} prompts under {len(counts)} of {len(ATTACKS)} attacks")
        print(
            f"evaluate them with: solon evaluate MODEL --prompts {out} --by {TAG} --max-prompts {len(found)} "
            "--judge JUDGE --constitution CONSTITUTION --out DIRECTORY"
        )
    return {"out": str(out), "prompts": len(rows), "attacks": dict(counts)}
