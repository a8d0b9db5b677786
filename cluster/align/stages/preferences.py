"""The policy answers prompts and a judge compares the answers: preference pairs, ratings, and the best answer to each
prompt."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from cluster.align.base import AlignStage, Job, require_completed
from cluster.align.file import LABEL_SECTIONS, AlignFile, paths_in
from solon.errors import RunFailedError
from solon.files.data_config import ReadConfig
from solon.files.json_text import write_lines
from solon.files.marks import FilePath, ModelName, PromptsPath
from solon.files.overrides import flat_items
from solon.host.own_code import module_command

COLUMNS = ("prompt", "chosen", "rejected", "soft_label", "weight", "judge_margin", "row_id")
"""Of a preference, apart from the identifiers of its labels, which differ between equal runs."""


class PreferencesStage(AlignStage):
    """`{ type = "preferences", max_prompts = 500 }`: by `solon label`, whose settings are in `[label]`."""

    kind: ClassVar[str] = "preferences"
    inputs: ClassVar[tuple[str, ...]] = ("policy", "judge", "prompts", "constitution")
    makes: ClassVar[tuple[str, ...]] = ("preferences", "demonstrations", "ratings")
    code: ClassVar[tuple[str, ...]] = ("solon.cli.label", "solon.feedback.judges.program_process")

    type: Literal["preferences"] = "preferences"
    policy: ModelName = ""
    """A stage or a model; empty: the latest policy."""
    judge: ModelName = ""
    """Empty: the file's."""
    prompts: PromptsPath = ""
    """Empty: the file's. Rows with answers are labelled as they are."""
    constitution: FilePath = ""
    """Empty: the file's."""
    max_prompts: int = Field(256, ge=1)
    """Most prompts of the file that are used, in its order."""
    skip_prompts: int = Field(0, ge=0)
    """Begin behind so many prompts; behind the last one the first follows."""

    def settings(self, file: AlignFile) -> dict[str, Any]:
        return {**super().settings(file), "label": file.label}

    def further(self, file: AlignFile) -> Mapping[str, str]:
        found = {}
        for section, model in LABEL_SECTIONS.items():
            given = dict(flat_items({"label": file.label}))
            for key in paths_in(model):
                value = given.get(f"label.{section}.{key}")
                for number, one in enumerate(value if isinstance(value, list) else [value]):
                    if one:
                        found[f"label.{section}.{key}.{number}"] = str(one)
        return found

    def make(self, job: Job) -> None:
        prompts = job.scratch / "prompts.jsonl"
        rows = _first_prompts(job.inputs["prompts"], self.max_prompts, self.skip_prompts, job.file.data)
        write_lines(prompts, rows)
        labelled = job.kept / "labels"
        command = module_command("solon", "label", str(prompts), "--out", str(labelled), "--json")
        for option in ("judge", "constitution", "policy"):
            command += [f"--{option}", job.inputs[option]]
        for key, value in flat_items({**job.file.label, "seed": job.file.seed}):
            command += ["--set", f"{key}={json.dumps(value)}"]
        job.run(command)
        summary = json.loads((labelled / "summary.json").read_text(encoding="utf-8"))
        require_completed(summary, "labelling")
        found = [json.loads(line) for line in _lines(labelled / "preferences.jsonl")]
        if not found:
            raise RunFailedError(
                f"the judge preferred no answer to another; look at the labels in {labelled}, and raise label.write."
                "temperature or choose another judge"
            )
        found.sort(key=lambda row: (row["row_id"], json.dumps(row["chosen"]), json.dumps(row["rejected"])))
        tags = {row["id"]: row["tags"] for row in rows}
        write_lines(
            job.out / "preferences.jsonl",
            ({name: row[name] for name in COLUMNS} | {"tags": tags.get(row["row_id"], [])} for row in found),
        )
        write_lines(job.out / "demonstrations.jsonl", best_answers(found))
        rated = [json.loads(line) for line in _lines(labelled / "ratings.jsonl")]
        rated.sort(key=lambda row: (row["row_id"], json.dumps(row["completion"])))
        write_lines(job.out / "ratings.jsonl", rated)
        job.report |= {"preferences": len(found), "ratings": len(rated), "labels": summary.get("labels")}


def best_answers(preferences: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each prompt the answer with the largest sum of margins over the others: rejection sampling."""
    margins: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    prompts: dict[str, Any] = {}
    for row in preferences:
        prompts[row["row_id"]] = row["prompt"]
        for side, sign in (("chosen", 1), ("rejected", -1)):
            margins[row["row_id"]][row[side][-1]["content"]] += sign * row["judge_margin"]
    return [
        {"prompt": prompts[row], "completion": [{"role": "assistant", "content": max(sorted(found), key=found.get)}]}  # type: ignore[arg-type]
        for row, found in sorted(margins.items())
    ]


def _first_prompts(source: str, most: int, skip: int, read: ReadConfig) -> list[dict[str, Any]]:
    """Rows for `solon label`, in the order of the file. Raises InputError."""
    from solon.feedback.labelling.dataset import first_rows

    return [
        {
            "id": row.row_id,
            "prompt": [{"role": m.role, "content": m.content} for m in row.prompt.messages],
            "tags": list(row.prompt.tags),
            **({"answers": list(row.answers)} if row.answers else {}),
        }
        for row in first_rows(source, most, skip=skip, read=read)
    ]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
