"""What would end an alignment after hours, found before its first stage starts. Reads files and headers; no model."""

from __future__ import annotations

from collections.abc import Callable

from cluster.align.base import Source
from cluster.align.file import AlignFile
from cluster.align.stages.constitutional import ConstitutionalStage
from cluster.align.stages.drift import DriftStage
from cluster.align.stages.evaluate import EvaluateStage
from cluster.align.stages.preferences import PreferencesStage
from cluster.align.stages.reward_model import RewardModelStage
from cluster.align.stages.rlaif import RlaifStage
from cluster.preflight.checks import check_judge
from cluster.preflight.models import check_model
from solon.cli.label_settings import LabelSettings
from solon.constitution.constitution import Constitution
from solon.errors import InputError
from solon.feedback.config import FeedbackConfig
from solon.feedback.judges.reward_judge import TASKS
from solon.feedback.labelling.dataset import first_rows
from solon.files.overrides import flat_items
from solon.files.rows import read_rows
from solon.models.given_names import same_place
from solon.verdicts import Task


def check_alignment(file: AlignFile, paths: Callable[[str], str]) -> None:
    """Check what stages are given that is no result of another stage. Raises InputError that names the stage."""
    settings = LabelSettings.of([f"{key}={value!r}" for key, value in flat_items(file.label)])
    seen: set[tuple[str, str, str]] = set()
    for number, stage in enumerate(file.stages):
        sources = file.sources(number)
        try:
            feedback = _feedback(stage, settings)
            if feedback is not None and sources["judge"].stage and not isinstance(stage, EvaluateStage):
                _check_reward_model(file, sources["judge"], stage, feedback)
            if isinstance(stage, EvaluateStage) and stage.judge:
                _check_apart(file, number, stage.judge, paths)
            if isinstance(stage, EvaluateStage) and stage.judge and not sources["judge"].stage:
                _check_auditor(paths(sources["judge"].path), paths(sources["constitution"].path), stage)
            if "policy" in sources:
                _check_length(stage, paths(sources["policy"].path or file.policy))
            for role, source in sources.items():
                place = (role.partition(".")[0], source.path, feedback.task if feedback else "")
                if source.path and place not in seen:
                    seen.add(place)
                    _check(place[0], paths(source.path), file, feedback)
        except InputError as error:
            raise InputError(f"stages[{number + 1}] ({stage.name}): {error}") from None


def _feedback(stage: object, settings: LabelSettings) -> FeedbackConfig | None:
    """How a stage asks its judge; None: it has none."""
    if isinstance(stage, RlaifStage):
        return stage.run_file().feedback
    if isinstance(stage, EvaluateStage) and stage.judge:
        return stage.feedback.model_copy(update={"task": "pointwise"})
    return settings.feedback if isinstance(stage, PreferencesStage) else None


def _check(role: str, path: str, file: AlignFile, feedback: FeedbackConfig | None) -> None:
    if role == "policy":
        check_model(path, role="policy", kind="policy")
    elif role in ("prompts", "heldout_prompts"):
        first_rows(path, 1, read=file.data)
    elif role in ("preferences", "demonstrations", "ratings"):
        if next(iter(read_rows(path, what=role)), None) is None:
            raise InputError(f"the {role} {path} have no row, expected some; check the path")
    elif role == "constitution":
        rules = Constitution.load(path)
        if feedback is not None:
            task: Task = feedback.task
            rules.for_task(task)
    elif role == "judge" and feedback is not None:
        check_judge(path, feedback.template)


def _check_length(stage: object, policy: str) -> None:
    """Raises InputError where the longest answer leaves no room for a prompt. policy: the stage's, or the file's where
    an earlier stage makes it: tuning keeps the context."""
    tokens = stage.max_tokens if isinstance(stage, DriftStage) else 0
    if isinstance(stage, EvaluateStage | ConstitutionalStage):
        tokens = stage.sampling.max_tokens
    facts = check_model(policy, role="policy", kind="policy") if tokens else None
    if facts is not None and facts.context is not None and tokens >= facts.context:
        raise InputError(
            f"answers may have {tokens} tokens, and the policy's context has {facts.context}, prompt included; lower "
            f"{'max_tokens' if isinstance(stage, DriftStage) else 'sampling.max_tokens'}"
        )


def labelling_judges(file: AlignFile, number: int) -> set[str]:
    """Judges that label for the stages before one, as the file names them."""
    found = set[str]()
    for index, stage in enumerate(file.stages[:number]):
        if "scores" in stage.makes:
            continue
        found |= {one.path for role, one in file.sources(index).items() if role == "judge" and one.path}
        if isinstance(stage, RlaifStage):
            found |= set(stage.run_file().feedback.panel)
        elif isinstance(stage, PreferencesStage):
            found |= set(stage.further(file).values())
    return found


def _check_apart(file: AlignFile, number: int, judge: str, paths: Callable[[str], str]) -> None:
    """Raises InputError for an auditor that labels, under whatever name."""
    for one in labelling_judges(file, number):
        if same_place(judge, one) or same_place(paths(judge), paths(one)):
            raise InputError(
                f"the judge {judge!r} labels for training, and a policy learns to please it; name another judge for "
                "the evaluation"
            )


def _check_auditor(path: str, constitution: str, stage: EvaluateStage) -> None:
    """Room for its questions and thoughts."""
    check_judge(
        path,
        stage.feedback.template,
        trusted=stage.judging.trust_remote_code,
        options=stage.judging,
        feedback=stage.feedback.model_copy(update={"task": "pointwise"}),
        constitution=Constitution.load(constitution),
    )


def _check_reward_model(file: AlignFile, source: Source, stage: object, feedback: FeedbackConfig) -> None:
    """A reward model that another stage is still to make."""
    maker = next(one for one in file.stages if one.name == source.stage)
    if feedback.task not in TASKS:
        raise InputError(
            f"feedback.task is {feedback.task!r}, and its judge is the reward model of the stage {source.stage!r}, "
            f"which has one number for an answer; expected {' or '.join(TASKS)}"
        )
    label = file.label.get("judging", {})
    backend = stage.run_file().judging.backend if isinstance(stage, RlaifStage) else label.get("backend", "vllm")
    if isinstance(maker, RewardModelStage) and maker.members > 1 and backend == "vllm":
        where = "run.judging" if isinstance(stage, RlaifStage) else "label.judging"
        raise InputError(
            f"its judge has {maker.members} members, which share a process, and its backend is vllm; set "
            f'{where}.backend = "transformers"'
        )
