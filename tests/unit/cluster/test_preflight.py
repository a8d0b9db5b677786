from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config.run_file import RunFile
from cluster.evaluate import mean_scores
from cluster.placement.placement import Node, Supply, check_cluster
from cluster.preflight.checks import check_inputs
from solon.errors import InputError
from tests.unit.run_files import CONSTITUTION, WORDS, make_model, make_run


def refusal(run: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        check_inputs(RunFile.load(run, overrides=overrides))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_a_good_run_passes_and_its_inputs_are_returned(run: Path):
    inputs = check_inputs(RunFile.load(run))
    assert inputs.constitution.id == "core"
    assert len(inputs.prompts) == 3
    assert inputs.heldout == ()
    assert inputs.warnings == ()


def test_heldout_prompts_are_read_and_cut(run: Path, tmp_path: Path):
    run.write_text(
        run.read_text() + "[evaluate]\nprompts = 'prompts.jsonl'\nevaluator = 'judge'\naudit_judge = 'judge'\n"
        "max_prompts = 2\n"
    )
    assert len(check_inputs(RunFile.load(run)).heldout) == 2
    make_model(tmp_path / "wordless", words="sky")
    assert "evaluate.audit_judge" in refusal(run, f"evaluate.audit_judge={tmp_path / 'wordless'}")


def test_a_few_broken_rows_are_a_warning(run: Path, tmp_path: Path):
    rows = [json.dumps({"prompt": f"{n}"}) for n in range(100)]
    (tmp_path / "prompts.jsonl").write_text("\n".join([*rows, "{"]))
    (warning,) = check_inputs(RunFile.load(run)).warnings
    assert "line 101" in warning


@pytest.mark.parametrize("role", ["policy", "judge"])
def test_a_missing_model_directory_is_named_with_its_role(run: Path, role: str):
    message = refusal(run, f"{role}=/no/such/model")
    assert f"{role} model /no/such/model does not exist" in message
    assert "expected a Hugging Face directory or a hub name" in message


def test_a_hub_name_is_left_to_the_engine(run: Path):
    assert check_inputs(RunFile.load(run, overrides=["policy=org/model", "judge=org/judge"]))


def test_a_file_is_not_accepted_as_a_model(run: Path, tmp_path: Path):
    assert "is a file" in refusal(run, f"policy={tmp_path / 'policy' / 'config.json'}")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", b"{", "config.json cannot be read"),
        ("config.json", b"\xff", "config.json cannot be read"),
        ("config.json", b"[" * 50_000, "config.json cannot be read"),
        ("config.json", b"[]", "config.json holds a list"),
        ("config.json", b"{}", "names no architecture"),
        ("model.safetensors", None, "has no *.safetensors file"),
        ("tokenizer_config.json", None, "has no tokenizer_config.json"),
        ("tokenizer_config.json", b"{}", "has no chat template"),
        ("tokenizer.json", b"{", "tokenizer.json cannot be read"),
        ("tokenizer.json", b"\xff\x00", "tokenizer.json cannot be read"),
    ],
)
def test_a_model_directory_with_something_missing_or_broken_is_refused(
    run: Path, tmp_path: Path, file: str, content: bytes | None, words: str
):
    path = tmp_path / "judge" / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    message = refusal(run)
    assert "judge model" in message
    assert words in message


def test_bin_files_are_not_read_and_the_message_says_what_to_do(run: Path, tmp_path: Path):
    (tmp_path / "policy" / "model.safetensors").rename(tmp_path / "policy" / "pytorch_model.bin")
    assert "convert it to safetensors" in refusal(run)


def test_a_chat_template_may_be_a_file_of_its_own(run: Path, tmp_path: Path):
    settings = json.loads((tmp_path / "policy" / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (tmp_path / "policy" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "policy" / "chat_template.jinja").write_text("{{ messages }}")
    assert check_inputs(RunFile.load(run))


def test_a_judge_whose_tokenizer_does_not_know_its_labels_is_named(run: Path, tmp_path: Path):
    judge = make_model(tmp_path / "wordless", words=WORDS.replace("yes no", ""))
    message = refusal(run, f"judge={judge}")
    assert f"judge model {judge}" in message
    assert "'yes' and 'no' to one token" in message


def test_a_judge_whose_tokenizer_splits_its_labels_is_named(run: Path, tmp_path: Path):
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel

    letters = Tokenizer(WordLevel({"<unk>": 0, "<end>": 1}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.save(str(tmp_path / "judge" / "tokenizer.json"))
    message = refusal(run)
    assert "splits the answer label" in message
    assert "choose another judge or feedback.template" in message


def test_prompts_under_no_principle_are_counted_and_shown(run: Path, tmp_path: Path):
    text = CONSTITUTION.replace("{id: kind", "{id: kind, applies_if: {tags_any: [fact]}")
    (tmp_path / "constitution.yaml").write_text(text)
    message = refusal(run)
    assert "3 of 3 prompts" in message
    assert "'is 0 blue'" in message
    assert "widen applies_if" in message


def test_a_task_without_its_questions_is_refused(run: Path, tmp_path: Path):
    text = CONSTITUTION.replace(", pairwise_question: which is kinder", "")
    (tmp_path / "constitution.yaml").write_text(text)
    assert check_inputs(RunFile.load(run))
    assert "kind has no pairwise_question" in refusal(run, "feedback.task=pairwise")


def machine(resources: dict[str, float]) -> Supply:
    """A cluster of one node."""
    return Supply(nodes=[Node(resources=resources)])


@pytest.mark.parametrize(("resources", "words"), [({}, "the cluster has 0"), ({"GPU": 2.0}, "the cluster has 2")])
def test_more_gpus_than_the_cluster_has_are_refused_by_role(run: Path, resources: dict[str, float], words: str):
    config = RunFile.load(run, overrides=["rollout.num_gpus=1", "rollout.num_actors=2", "learn.num_gpus=1"])
    with pytest.raises(InputError, match=r"needs 3 GPU\(s\) \(2 x rollout 2, learn 1\)") as caught:
        check_cluster(config, machine({"CPU": 99.0} | resources))
    assert words in str(caught.value)
    check_cluster(config, machine({"CPU": 99.0, "GPU": 3.0}))


def test_more_cpus_than_the_cluster_has_are_refused(run: Path):
    config = RunFile.load(run)
    with pytest.raises(InputError, match=r"needs 3 CPU\(s\) .*, the cluster has 2; lower num_cpus"):
        check_cluster(config, machine({"CPU": 2.0}))
    check_cluster(config, machine({"CPU": 3.0}))


def test_fractions_that_add_up_to_the_cluster_fit(run: Path):
    config = RunFile.load(run, overrides=["rollout.num_cpus=0.1", "judging.num_cpus=0.2", "learn.num_cpus=0.7"])
    check_cluster(config, machine({"CPU": 1.0}))
    config = RunFile.load(run, overrides=["rollout.num_cpus=0.1", "judging.num_cpus=0.1", "learn.num_cpus=0.1"])
    assert config.cpus > 0.3
    check_cluster(config, machine({"CPU": 0.3}))


def test_mean_scores_match_hand_computed_values():
    found = [{"truth": True, "brevity": False}, {"truth": True}, {"truth": False, "brevity": True}, {}]
    scores = mean_scores(found)
    assert scores == {"brevity": 0.5, "truth": 2 / 3, "mean": pytest.approx((0.5 + 2 / 3) / 2)}
    assert list(scores)[-1] == "mean"
    assert mean_scores([{}, {}]) == {}


def test_the_one_gpu_example_fits_one_gpu_and_is_refused_without():
    run = RunFile.load(Path(__file__).resolve().parents[3] / "examples" / "one_gpu.toml")
    inputs = check_inputs(run)
    assert len(inputs.prompts) == 12
    check_cluster(run, machine({"CPU": 4.0, "GPU": 1.0}))
    with pytest.raises(InputError, match=r"needs 1 GPU\(s\) .*has 0"):
        check_cluster(run, machine({"CPU": 4.0}))
