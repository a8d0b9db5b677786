"""Prompts that the policy refuses, that are too long, repeated or held out, and how a run treats them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.config.run_file import RunFile
from cluster.preflight.checks import Inputs, check_inputs
from cluster.preflight.prompt_inputs import COUNTS
from solon.engines.base import EngineConfig
from solon.engines.screening import screen_one
from solon.errors import InputError
from solon.feedback.labelling.dataset import load_answers
from solon.feedback.labelling.writing import unwritable
from solon.pipeline import prompt_screen
from solon.pipeline.prompt_screen import Screening, screen
from solon.pipeline.screen_process import memory_for
from solon.records import Message
from tests.unit.run_files import add_token, make_run

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{{ m['content'] }} {% endfor %}"
)
"""Refuses a system turn and two user turns in a row, as many published templates do."""
TWICE = [{"role": "user", "content": "sky"}, {"role": "user", "content": "blue"}]
SYSTEM = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "sky"}]
CHAT = [
    {"role": "user", "content": "sky " * 9},
    {"role": "assistant", "content": "blue"},
    {"role": "user", "content": "is it blue"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose policy takes 10 tokens of prompt and no system turn."""
    make_run(tmp_path, "[rollout]\nmax_model_len = 16\nmax_tokens = 6\ngroup_size = 4\n")
    config = {"chat_template": ALTERNATING, "eos_token": "<unk>", "unk_token": "<unk>", "model_max_length": 100}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (tmp_path / "policy" / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def write(folder: Path, prompts: list[Any], name: str = "prompts.jsonl") -> None:
    (folder / name).write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def check(folder: Path, *overrides: str) -> Inputs:
    return check_inputs(RunFile.load(folder / "run.toml", overrides=overrides))


def refusal(folder: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check(folder, *overrides)
    return str(caught.value)


def counts(**other: int) -> Mapping[str, int]:
    return dict.fromkeys(COUNTS, 0) | other


def texts(inputs: Inputs) -> list[str]:
    return [prompt.messages[-1].content for prompt in inputs.prompts]


def test_prompts_that_the_template_refuses_are_left_out_counted_and_named(folder: Path):
    write(folder, ["is it blue", TWICE, "yes", SYSTEM])
    inputs = check(folder)
    assert texts(inputs) == ["is it blue", "yes"]
    assert inputs.counts == {"prompts": counts(read=4, used=2, refused=2)}
    assert [row.place.number for row in inputs.refused["prompts"]] == [2, 4]
    (warning,) = inputs.warnings
    assert "2 of 4 prompts (50.0%) are refused by the policy's chat template; dropped" in warning
    assert "line 2: the chat template refuses" in warning
    assert "roles must alternate user/assistant" in warning
    assert "roles must alternate" in refusal(folder, "data.refused=error")
    write(folder, [TWICE, SYSTEM])
    assert "none of 2 prompts can be used: line 1: the chat template refuses" in refusal(folder)


def test_prompts_with_tokens_that_the_embedding_lacks_are_named_before_the_start(folder: Path):
    add_token(folder / "policy", "<think>")
    path = folder / "policy" / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if SPEAKS %}<think>{% endif %}"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": template.replace("SPEAKS", "messages|length > 1")}))
    write(folder, ["is it blue", SYSTEM])
    inputs = check(folder)
    assert texts(inputs) == ["is it blue"]
    assert inputs.counts["prompts"] == counts(read=2, used=1, refused=1)
    warning = next(w for w in inputs.warnings if "lacks" in w)
    assert "1 of 2 prompts (50.0%) hold tokens that the policy's embedding lacks; dropped; the tokenizer has" in warning
    assert "line 2: holds the token '<think>' (id 32) beyond the 32 rows of the embedding" in warning
    assert "lacks; the tokenizer has tokens that the model lacks" in refusal(folder, "data.refused=error")
    path.write_text(json.dumps(config | {"chat_template": template.replace("SPEAKS", "not enable_thinking")}))
    message = refusal(folder, "rollout.chat_template_args.enable_thinking=false")
    assert "none of 2 prompts can be used: 2 rows: holds the token '<think>' (id 32)" in message
    assert message.endswith("(chat_template, chat_template_args)")
    assert check(folder, "rollout.chat_template_args.enable_thinking=true").counts["prompts"]["used"] == 2
    rows = load_answers(folder / "prompts.jsonl", least=1).unanswered
    skipped = unwritable(rows, EngineConfig(model=str(folder / "policy"), max_model_len=16), 6)
    assert ["<think>" in row.reason for row in skipped] == [True, True]


def test_overlong_prompts_are_left_out_refused_or_cut_but_never_silently(folder: Path):
    write(folder, ["is it blue", CHAT, "no " * 11])
    dropped = check(folder)
    assert texts(dropped) == ["is it blue"]
    assert dropped.counts["prompts"] == counts(read=3, used=1, overlong=2)
    assert "2 of 3 prompts (66.7%) are longer than the 10 tokens" in dropped.warnings[0]
    assert "line 2: has 13 tokens, 10 fit" in dropped.warnings[0]
    message = refusal(folder, "data.overlong=error")
    assert "line 2: has 13 tokens, 10 fit" in message
    assert "leaves; raise max_model_len" in message
    assert "dropped" not in message
    cut = check(folder, "data.overlong=cut")
    assert [[m.content for m in p.messages] for p in cut.prompts] == [["is it blue"], ["is it blue"], ["no " * 10]]
    assert cut.counts["prompts"] == counts(read=3, used=3, overlong=2, cut=2)
    assert "2 of 3 prompts (66.7%) were cut to 10 tokens" in cut.warnings[0]
    assert cut.prompts[0].prompt_id == cut.prompts[1].prompt_id


def test_repeated_and_held_out_prompts_are_reported_and_left_out_on_request(folder: Path):
    with (folder / "run.toml").open("a") as file:
        file.write('[evaluate]\nprompts = "heldout.jsonl"\nevaluator = "judge"\naudit_judge = "judge"\n')
    write(folder, ["sky", "blue", "sky"])
    write(folder, ["blue", "yes"], "heldout.jsonl")
    inputs = check(folder)
    assert texts(inputs) == ["sky", "blue", "sky"]
    assert inputs.counts["prompts"] == counts(read=3, used=3, duplicates=1, overlap=1)
    assert inputs.counts["heldout"] == counts(read=2, used=2)
    assert "1 of 3 prompts (33.3%) repeat an earlier one; kept" in inputs.warnings[0]
    assert "line 3: repeats line 1" in inputs.warnings[0]
    assert "1 of 3 prompts (33.3%) are held out as well" in inputs.warnings[1]
    clean = check(folder, "data.duplicates=drop", "data.heldout_overlap=drop")
    assert texts(clean) == ["sky"]
    assert clean.counts["prompts"] == counts(read=3, used=1, duplicates=1, overlap=1)
    assert "line 2: is held out as well, line 1 of evaluate.prompts" in refusal(folder, "data.heldout_overlap=error")


def test_prompts_are_rendered_as_the_engines_will_render_them(own_process: None, folder: Path):
    write(folder, ["is it blue", "no"])
    (folder / "chat.jinja").write_text("{% if long %}{{ 'sky ' * 9 }}{% endif %}" + ALTERNATING)
    assert check(folder, f"rollout.chat_template={folder / 'chat.jinja'}").counts["prompts"]["overlong"] == 0
    chosen = (f"rollout.chat_template={folder / 'chat.jinja'}", "rollout.chat_template_args.long=true")
    assert check(folder, *chosen).counts["prompts"] == counts(read=2, used=1, overlong=1)


def test_a_conversation_is_rendered_only_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    write(folder, ["is it blue", TWICE, f"{time.time_ns()} yes"])
    first = check(folder)

    def never(*_: Any) -> Any:
        raise AssertionError("rendered again")

    monkeypatch.setattr(prompt_screen, "_start", never)
    assert check(folder).counts == first.counts
    with pytest.raises(AssertionError, match="rendered again"):
        check(folder, "rollout.max_model_len=20")


def test_rendering_many_prompts_is_announced_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prompt_screen, "MANY", 2)
    write(folder, ["is it blue", f"{time.time_ns()} yes"])
    said: list[str] = []
    for _ in range(2):
        check_inputs(RunFile.load(folder / "run.toml"), say=said.append)
    assert said == ["rendering 2 prompts with the policy's chat template; the result is kept"]


def use_template(folder: Path, template: str) -> None:
    path = folder / "policy" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_an_endless_template_is_terminated_and_its_row_is_named(
    own_process: None, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt_screen, "DEADLINE_S", 0.5)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    use_template(folder, f"{{% if messages[0].content == 'sky' %}}{loops}{{% endif %}}{ALTERNATING}")
    write(folder, ["is it blue", "sky", "no"])
    message = refusal(folder)
    assert "its chat template did not finish within 0.5 s for line 2 of " in message
    assert "prompts.jsonl, a prompt of 3 characters" in message


def test_an_endless_call_into_c_is_terminated_at_the_deadline(
    own_process: None, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt_screen, "DEADLINE_S", 0.5)
    use_template(folder, "{{ 9 ** (9 ** 9) }}{{ messages }}")
    with pytest.raises(InputError, match=r"did not finish within 0.5 s for prompt number 1, a prompt of 3 chara"):
        screen([(Message(role="user", content="sky"),)], Screening(model=str(folder / "policy"), room=9))


def test_a_template_that_fills_the_memory_is_refused_at_a_limit_far_below_the_machines(
    own_process: None, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert prompt_screen.MEMORY_BYTES <= 4 << 30
    assert memory_for(10**6, 2 << 30) == 512 << 20
    monkeypatch.setattr(prompt_screen, "MEMORY_BYTES", 64 << 20)
    doubles = "{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x=ns.x+ns.x %}{% endfor %}{{ ns.x }}"
    use_template(folder, doubles)
    write(folder, ["sky", "blue"])
    assert re.search(r"its chat template takes more memory than 0\.\d+ GiB for line 1 of ", refusal(folder))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "does not parse: "),
        ("{{ 1/0 }}", "fails: 'division by zero'"),
        ("{% include 'x' %}", "fails: 'no loader"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "renders the same text for every last turn of the user"),
    ],
)
def test_a_template_that_renders_no_prompt_is_reported_once_for_the_policy(folder: Path, template: str, said: str):
    use_template(folder, template)
    write(folder, ["is it blue", CHAT, "no"])
    message = refusal(folder)
    assert message.startswith(f"policy model {folder / 'policy'}: its chat template {said}")
    assert message.count(said) == 1
    assert "line 2" not in message
    rows = load_answers(folder / "prompts.jsonl", least=1).unanswered
    with pytest.raises(InputError, match="its chat template"):
        unwritable(rows, EngineConfig(model=str(folder / "policy"), max_model_len=16), 6)


def test_a_prompt_of_more_characters_than_can_fit_is_overlong_without_being_rendered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prompt_screen, "DEADLINE_S", 5.0)
    monkeypatch.setattr(prompt_screen, "CHARACTERS_PER_S", 10**9)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    use_template(folder, f"{{% if messages[-1].content|length > 66000 %}}{loops}{{% endif %}}{ALTERNATING}")
    write(folder, ["is it blue", "no " * 700_000, [*CHAT[:2], {"role": "user", "content": "sky " * 500_000}]])
    dropped = check(folder)
    assert texts(dropped) == ["is it blue"]
    assert dropped.counts["prompts"] == counts(read=3, used=1, overlong=2)
    assert "line 2: has 2,099,999 characters, more than 10 tokens can hold" in dropped.warnings[0]
    assert "line 2: has 2,099,999 characters" in refusal(folder, "data.overlong=error")
    cut = check(folder, "data.overlong=cut")
    assert [p.messages[-1].content.split() for p in cut.prompts] == [["is", "it", "blue"], ["no"] * 10, ["sky"] * 10]
    assert cut.counts["prompts"] == counts(read=3, used=3, overlong=2, cut=2)


def test_thoughts_that_a_template_may_leave_out_do_not_count_as_characters(folder: Path):
    use_template(folder, "{% for m in messages %}{{ m.content.split('</think>')[-1] }} {% endfor %}")
    old = {"role": "assistant", "content": f"<think>{'no ' * 40_000}</think> blue"}
    write(folder, [[CHAT[2], old, CHAT[2]]])
    assert check(folder).counts["prompts"] == counts(read=1, used=1)


def test_a_tokenizer_that_cannot_be_loaded_is_refused_with_its_reason(own_process: None, folder: Path):
    (folder / "policy" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"policy model .*policy: its tokenizer cannot be loaded: \w+"):
        screen([(Message(role="user", content="sky"),)], Screening(model=str(folder / "policy"), room=9))


def test_a_policy_that_is_not_on_this_machine_leaves_prompts_unrendered_with_a_note(folder: Path):
    inputs = check(folder, "policy=org/model")
    assert any("the prompts were not rendered" in warning for warning in inputs.warnings)
    assert len(inputs.prompts) == 3


def test_label_skips_prompts_that_its_policy_cannot_answer(folder: Path):
    write(folder, ["is it blue", TWICE, "no " * 11])
    rows = load_answers(folder / "prompts.jsonl", least=1).unanswered
    skipped = unwritable(rows, EngineConfig(model=str(folder / "policy"), max_model_len=16), 6)
    assert [row.place for row in skipped] == ["line 2", "line 3"]
    assert "roles must alternate user/assistant" in skipped[0].reason
    assert skipped[1].reason == "has 11 tokens, 10 fit"
    assert unwritable(rows, EngineConfig(model="org/model", max_model_len=16), 6) == []


def test_any_error_of_a_template_refuses_only_that_prompt():
    def encode(messages: Any) -> list[int]:
        raise TypeError("can only concatenate str\n(not NoneType)")

    found = screen_one([Message(role="user", content="x")], encode, room=5, cuts=False)
    assert found == {"refused": "the chat template refuses it: can only concatenate str (not NoneType)"}


def test_many_prompts_of_which_nine_in_a_thousand_are_broken_are_read_at_100_microseconds_each(tmp_path: Path):
    from solon.files.prompts import load_prompts

    count = 20_000
    lines = ['{"prompt": "cut of' if n % 111 == 0 else f'{{"prompt": "question {n} ?"}}' for n in range(count)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    started = time.process_time()
    file = load_prompts(path)
    assert len(file.bad) == 181
    assert time.process_time() - started < count / 1_000_000 * 100
    (warning,) = file.warnings()
    assert "skipped 181 of 20,000 rows, broken (181 rows: not JSON" in warning
    assert warning.endswith("(lines 1, 112, 223, …))")
