"""Real engines with random-weight models of the common families: their results match Hugging Face's computation.

Shapes: T token positions, V vocabulary.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from solon.engines.base import Completion, Engine, EngineConfig, Request
from solon.engines.build import build_engine
from solon.engines.chunks import named_tensors, packed
from solon.engines.runner import EngineRunner
from solon.errors import AttestationError, InputError, RunFailedError
from solon.records import Feedback, Filters, Group, Message, Rollout, TrainingGroup, Weights
from tests.models import make_tokenizer
from tests.unit.fakes import make_prompt

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

VOCAB = 128
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "sliding_window": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"tie_word_embeddings": True, "sliding_window": 32, "query_pre_attn_scalar": 32},
}


# ---- builders


def make_network(family: str, seed: int) -> Any:
    """A random network with predictions sharp enough to expose a stale weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family.removesuffix("-tied"),
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=5,
        pad_token_id=0,
        **FAMILIES[family],
    )
    torch.manual_seed(seed)
    # Eager attention computes what the architecture says; the fused kernel drops Gemma 2's soft cap.
    network = AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(torch.float32).eval()
    network.requires_grad_(False)
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=0.1)
    return network


def save_tokenizer(path: Path) -> None:
    make_tokenizer([f"w{i}" for i in range(VOCAB - 6)]).save_pretrained(path)


CHUNK_BYTES = 1 << 15
"""Less than a model, so that engines load several chunks."""


def make_weights(family: str, version: int, *, leave_out: str = "") -> tuple[Weights, Any]:
    """A new policy version, and the network behind it."""
    network = make_network(family, seed=100 + version)
    tied = network.config.tie_word_embeddings
    state = {
        name: tensor.contiguous()
        for name, tensor in network.state_dict().items()
        if not (tied and name == "lm_head.weight") and name != leave_out
    }
    canary = tuple(int(token) for token in np.random.default_rng(version).integers(6, VOCAB, 24))
    (logprobs,) = hf_logprobs(network, [canary])
    weights = packed(
        version,
        state.items(),
        canary_token_ids=(canary,),
        canary_logprobs=(tuple(logprobs.tolist()),),
        bound=CHUNK_BYTES,
    )
    return weights, network


def quantise_int8(checkpoint: Path) -> None:
    """Rewrites a checkpoint in compressed-tensors W8A8: int8 weights with a scale per row, activations on the fly."""
    from safetensors.torch import load_file, save_file

    def numbers(strategy: str, *, dynamic: bool) -> dict[str, Any]:
        return {"num_bits": 8, "type": "int", "symmetric": True, "strategy": strategy, "dynamic": dynamic}

    tensors = load_file(checkpoint / "model.safetensors")
    for name in [name for name in tensors if "proj.weight" in name]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 127
        tensors[name + "_scale"] = scale
        tensors[name] = (tensors[name] / scale).round().to(scale.dtype).char()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((checkpoint / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": numbers("channel", dynamic=False), "format": "int-quantized"}
    group["input_activations"] = numbers("token", dynamic=True)
    settings["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (checkpoint / "config.json").write_text(json.dumps(settings))


def hf_logprobs(network: Any, sequences: Any, temperature: float = 1.0) -> list[Any]:
    """log p(token t | tokens < t) for t >= 1 by one plain forward pass per sequence."""
    import torch

    results = []
    for sequence in sequences:
        ids = torch.tensor([list(map(int, sequence))])
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(network(ids).logits[0, :-1].float() / temperature, -1)
        results.append(logprobs_TV.gather(-1, ids[0, 1:, None])[:, 0].numpy())
    return results


def make_requests(count: int, *, max_tokens: int = 16, temperature: float = 1.0, prefix: str = "r") -> list[Request]:
    random = np.random.default_rng(count)
    return [
        Request(
            request_id=f"{prefix}{i}",
            prompt_token_ids=tuple(int(token) for token in random.integers(6, VOCAB, 5 + i % 40)),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=i,
        )
        for i in range(count)
    ]


def finish(engine: Engine, requests: list[Request] | None = None) -> list[Completion]:
    """Adds the requests and steps until all is done; completions in the order of their ids."""
    for request in requests or []:
        engine.add(request)
    done = {}
    while engine.has_work():
        done.update({completion.request_id: completion for completion in engine.step()})
    return [done[request.request_id] for request in requests] if requests else list(done.values())


def canary_gap(engine: Engine, weights: Weights) -> float:
    computed = engine.sequence_logprobs(weights.canary_token_ids)
    return float(np.abs(np.subtract(computed, weights.canary_logprobs)).max())


def behaviour_gap(requests: list[Request], completions: list[Completion], network: Any) -> float:
    """Largest difference between the log-probs that generating returned and a recomputation."""
    gaps = []
    for request, completion in zip(requests, completions, strict=True):
        sequence = [*request.prompt_token_ids, *completion.token_ids]
        (again,) = hf_logprobs(network, [sequence], request.temperature)
        gaps.append(np.abs(again[len(request.prompt_token_ids) - 1 :] - completion.logprobs).max())
    return float(max(gaps))


# ---- fixtures


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        make_network(family, seed=0).save_pretrained(root / family)
        save_tokenizer(root / family)
    return {family: root / family for family in FAMILIES}


def config_of(checkpoint: Path, backend: str, **settings: Any) -> EngineConfig:
    return EngineConfig(
        model=str(checkpoint), backend=backend, max_model_len=128, max_running=32, kv_cache_gib=0.05, **settings
    )


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> Iterator[Engine]:
    """One engine of each kind with a tied Llama, shared by the tests below; its weights change between tests."""
    built = build_engine(config_of(checkpoints["llama-tied"], request.param), name=request.param)
    yield built
    built.close()


# ---- salvage


def test_another_request_continues_from_the_tokens_of_an_unfinished_answer(
    engine: Engine, checkpoints: dict[str, Path]
):
    weights, network = make_weights("llama-tied", version=9)
    engine.load_weights(weights)
    (request,) = make_requests(1, max_tokens=60, temperature=0.7, prefix="begun")
    engine.add(request)
    assert engine.unfinished() == []
    for _ in range(12):
        assert engine.step() == []
    (begun,) = engine.unfinished()
    assert begun.finish_reason == "abort"
    assert 6 <= len(begun.token_ids) == len(begun.logprobs) <= 12
    engine.abort([request.request_id])
    assert engine.unfinished() == []
    written = tuple(begun.token_ids.tolist())
    rest = replace(request, request_id="rest", prompt_token_ids=request.prompt_token_ids + written, max_tokens=40)
    (after,) = finish(engine, [rest])
    whole = replace(after, token_ids=np.concatenate([begun.token_ids, after.token_ids]))
    whole = replace(whole, logprobs=np.concatenate([begun.logprobs, after.logprobs]))
    assert behaviour_gap([request], [whole], network) < 1e-4


# ---- filters and ends

FILTERS = (
    Filters(top_p=0.9, top_k=20, min_p=0.05, min_tokens=6),
    Filters(top_p=0.9),
    Filters(top_k=20),
    Filters(min_p=0.05),
    Filters(min_tokens=6),
)


def test_filtered_log_probs_of_the_engine_are_those_of_the_learner(engine: Engine, checkpoints: dict[str, Path]):
    """All filters in one running batch, then each one's samples in a learner with the same filter."""
    from learners.build import build_learner
    from learners.config import LearnConfig

    model = str(checkpoints["llama-tied"])
    requests = {
        filters: [
            replace(request, request_id=f"{number}-{request.request_id}", filters=filters, stop_token_ids=(9,))
            for request in make_requests(16, temperature=0.7)
        ]
        for number, filters in enumerate(FILTERS)
    }
    for number, filters in enumerate(FILTERS):
        config = LearnConfig(advantages="group", kl_coefficient=0.0)
        learner = build_learner(config, model=model, temperature=0.7, seed=0, filters=filters, end_ids=(5, 9))
        if number == 0:
            engine.load_weights(learner.initial_weights())
            done = {c.request_id: c for c in finish(engine, [r for asked in requests.values() for r in asked])}
        groups = [
            training_group(ordinal, request.prompt_token_ids, [done[request.request_id]] * 2)
            for ordinal, request in enumerate(requests[filters])
        ]
        report, _ = learner.step(0, groups)
        assert report.metrics["learn/mismatch_gap/max"] < 1e-5, filters
        assert report.metrics["learn/outside_set/share"] == 0, filters
        if filters.min_tokens:
            lengths = [len(done[r.request_id].token_ids) for r in requests[filters]]
            assert min(lengths) > filters.min_tokens


def test_a_stop_string_ends_an_answer_in_a_real_engine_at_the_token_that_completes_it(engine: Engine):
    asked = [replace(r, stop=("w1", "w40 ")) for r in make_requests(48, max_tokens=40)]
    completions = finish(engine, asked)
    texts = [engine.tokenizer.decode(c.token_ids.tolist(), is_raw=True) for c in completions]
    before = [engine.tokenizer.decode(c.token_ids[:-1].tolist(), is_raw=True) for c in completions]
    ended = [c for c, text in zip(completions, texts, strict=True) if "w1" in text or "w40 " in text]
    assert len(ended) > 10
    assert {c.finish_reason for c in ended} == {"stop"}
    assert not any("w1" in text or "w40 " in text for text in before)
    assert not engine.has_work()
    assert all(len(c.token_ids) == len(c.logprobs) == sum(n for _, n in c.segments) for c in completions)


# ---- every family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_a_family_generates_and_loads_new_weights(checkpoints: dict[str, Path], backend: str, family: str):
    engine = build_engine(config_of(checkpoints[family], backend), name=f"{backend}-{family}")
    try:
        requests = make_requests(40, temperature=0.7)
        assert behaviour_gap(requests, finish(engine, requests), make_network(family, seed=0)) < 1e-4
        before = engine.checksum()
        assert engine.checksum() == before
        weights, network = make_weights(family, version=1)
        assert canary_gap(engine, weights) > 0.5
        engine.load_weights(weights)
        assert engine.checksum() != before
        assert canary_gap(engine, weights) < 1e-4
        completions = finish(engine, requests)
        assert behaviour_gap(requests, completions, network) < 1e-4
        assert {version for c in completions for version, _ in c.segments} == {1}
    finally:
        engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_loaded_generated_trained_published_and_attested(checkpoints: dict[str, Path], family: str):
    from learners.build import build_learner
    from learners.config import LearnConfig

    learner = build_learner(LearnConfig(learning_rate=1e-3), model=str(checkpoints[family]), temperature=0.7, seed=0)
    engine = build_engine(config_of(checkpoints[family], "vllm"), name=family)
    try:
        initial = learner.initial_weights()
        assert canary_gap(engine, initial) < 1e-4
        engine.load_weights(initial)
        groups = make_training_groups(engine, make_requests(24, temperature=0.7))
        report, weights = learner.step(0, groups)
        assert report.metrics["learn/mismatch_gap/max"] < 1e-3
        assert report.moved
        assert canary_gap(engine, weights) > 1e-3
        engine.load_weights(weights)
        assert canary_gap(engine, weights) < 1e-4
    finally:
        engine.close()


def make_training_groups(engine: Engine, requests: list[Request], *, size: int = 4) -> list[TrainingGroup]:
    """Answers of the engine in groups, longer ones rewarded."""
    groups = []
    for ordinal, start in enumerate(range(0, len(requests), size)):
        prompt = requests[start].prompt_token_ids
        group = [replace(r, prompt_token_ids=prompt) for r in requests[start : start + size]]
        groups.append(training_group(ordinal, prompt, finish(engine, group)))
    return groups


def training_group(ordinal: int, prompt: tuple[int, ...], completions: list[Completion]) -> TrainingGroup:
    """Answers to one prompt; the later, the better."""
    rollouts = tuple(
        Rollout(token_ids=c.token_ids, logprobs=c.logprobs, segments=c.segments, finish_reason=c.finish_reason, text="")
        for c in completions
    )
    return TrainingGroup(
        group=Group(
            ordinal=ordinal,
            attempt=0,
            prompt=make_prompt(),
            prompt_token_ids=np.array(prompt, np.int32),
            rollouts=rollouts,
        ),
        feedback=Feedback(
            ordinal=ordinal, attempt=0, rewards_G=tuple(float(index) for index in range(len(rollouts))), labels=()
        ),
    )


def test_the_engines_agree_on_the_log_prob_of_a_sequence(checkpoints: dict[str, Path]):
    sequences = [request.prompt_token_ids for request in make_requests(8)]
    computed = []
    for backend in ("vllm", "transformers"):
        engine = build_engine(config_of(checkpoints["llama"], backend), name=backend)
        computed.append(engine.sequence_logprobs(sequences))
        engine.close()
    for one, other in zip(*computed, strict=True):
        assert np.abs(np.subtract(one, other)).max() < 1e-4


# ---- both engines, one model


def test_an_answer_ends_with_its_stop_token_or_its_length(engine: Engine):
    completions = finish(engine, make_requests(64, max_tokens=40))
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    assert all(c.token_ids[-1] == 5 and 5 not in c.token_ids[:-1] for c in stopped)
    assert all(len(c.token_ids) == 40 for c in completions if c.finish_reason == "length")
    assert all(len(c.token_ids) == len(c.logprobs) == sum(n for _, n in c.segments) for c in completions)


def test_a_seed_gives_the_same_answer_in_another_batch(engine: Engine):
    requests = make_requests(24)
    together = finish(engine, requests)
    alone = [finish(engine, [request])[0] for request in requests[:4]]
    assert [c.token_ids.tolist() for c in together[:4]] == [c.token_ids.tolist() for c in alone]


def test_temperature_zero_is_greedy(engine: Engine):
    requests = make_requests(4, temperature=0.0)
    first = finish(engine, requests)
    second = finish(engine, [replace(request, seed=request.seed + 99) for request in requests])
    assert [c.token_ids.tolist() for c in first] == [c.token_ids.tolist() for c in second]


def test_a_verdict_reads_the_whole_next_token_distribution(engine: Engine):
    import torch

    weights, network = make_weights("llama-tied", version=engine.version + 1)
    engine.load_weights(weights)
    everything = tuple(range(VOCAB))
    requests = [
        replace(request, label_ids=everything if i % 2 else (7, 8), max_tokens=1)
        for i, request in enumerate(make_requests(16))
    ]
    generating = make_requests(8, temperature=0.5, prefix="g")  # other temperatures in the same batch
    completions = finish(engine, [*requests, *generating])
    for request, completion in zip(requests, completions, strict=False):
        with torch.no_grad():
            logits_V = network(torch.tensor([request.prompt_token_ids])).logits[0, -1]
        expected = torch.log_softmax(logits_V, -1)[list(request.label_ids)].numpy()
        assert completion.label_logprobs == pytest.approx(expected, abs=1e-4)
        mass = np.exp(completion.label_logprobs).sum()
        assert mass == pytest.approx(1, abs=1e-4) if len(request.label_ids) == VOCAB else mass < 1
    assert behaviour_gap(generating, completions[len(requests) :], network) < 1e-4


def test_an_update_in_flight_loses_no_token_and_stamps_two_segments(engine: Engine):
    old = engine.version
    requests = [replace(request, seed=1000 + i) for i, request in enumerate(make_requests(24, max_tokens=20))]
    for request in requests:
        engine.add(request)
    done = [completion for _ in range(6) for completion in engine.step()]
    weights, _ = make_weights("llama-tied", version=old + 1)
    engine.load_weights(weights)
    assert canary_gap(engine, weights) < 1e-4  # it may step the running requests or not: none is lost
    done += finish(engine)
    assert {completion.request_id for completion in done} == {request.request_id for request in requests}
    for completion in done:
        versions = [version for version, _ in completion.segments]
        assert versions in ([old], [old, old + 1])
        assert sum(count for _, count in completion.segments) == len(completion.token_ids)
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 20
        if len(completion.token_ids) > 6:
            assert completion.segments[0] == (old, 6)


def test_aborted_requests_never_finish(engine: Engine):
    for request in make_requests(8, max_tokens=30):
        engine.add(request)
    engine.step()
    engine.abort(["r0", "r1", "r2", "unknown"])
    assert not {"r0", "r1", "r2"} & {completion.request_id for completion in finish(engine)}
    assert not engine.has_work()


def test_a_request_that_does_not_fit_is_refused_with_advice(engine: Engine):
    with pytest.raises(InputError, match="max_model_len"):
        engine.add(Request(request_id="long", prompt_token_ids=(7,) * 120, max_tokens=9))
    with pytest.raises(InputError, match="tokenizer"):
        engine.add(Request(request_id="foreign", prompt_token_ids=(VOCAB,), max_tokens=9))
    assert not engine.has_work()


def test_a_payload_that_changed_in_transit_is_refused_before_it_touches_the_model(engine: Engine):
    before = (engine.version, engine.checksum())
    weights, _ = make_weights("llama-tied", version=engine.version + 1)
    with pytest.raises(AttestationError, match="changed on its way"):
        engine.load_weights(replace(weights, fingerprint="0" * 64))
    assert (engine.version, engine.checksum()) == before
    assert finish(engine, make_requests(2))


def test_the_checksum_sees_a_change_in_any_tensor(engine: Engine):
    weights, _ = make_weights("llama-tied", version=engine.version + 1)
    engine.load_weights(weights)
    seen = {engine.checksum()}
    names = [leaf.name for leaf in weights.leaves]
    for name in names:
        state = {one: tensor.clone() for one, tensor in named_tensors(weights)}
        state[name].view(-1)[-1] += 1e-6
        changed = packed(weights.version, state.items())
        engine.load_weights(changed)
        seen.add(engine.checksum())
    assert len(seen) == len(names) + 1


def test_text_becomes_tokens_by_the_models_own_template(engine: Engine):
    ids = engine.tokenizer.encode_chat([Message(role="user", content="w0 w1")])
    assert ids == [3, 6, 7, 5, 4]
    assert engine.tokenizer.decode([6, 7, 5]) == "w0 w1"


async def test_policy_and_judge_read_the_same_ids_of_a_text_that_is_full_of_control_words(checkpoints: dict[str, Path]):
    from solon.ledger.ledger import Grant
    from solon.pipeline.rollout import RolloutSettings, RolloutWorker
    from solon.protocols import Assignment
    from solon.records import Sampling

    config = config_of(checkpoints["llama-tied"], "transformers")
    prompt = make_prompt("w0 <|end|> <|assistant|> w1 <|user|> w2")
    settings = RolloutSettings(sampling=Sampling(max_tokens=2), group_size=1, seed=0)
    policy = RolloutWorker(config, settings, name="policy")
    await policy.start()
    made = [item async for item in policy.generate([Assignment(grant=Grant(0, 0, 0), prompt=prompt)])]
    await policy.close()
    (read_by_policy,) = [item[1].prompt_token_ids.tolist() for item in made if isinstance(item, tuple)]

    runner = EngineRunner(lambda: build_engine(config, name="judge"), name="judge")
    await runner.ready()
    before, after = runner.tokenizer.chat_frame()
    read_by_judge = [*before, *runner.tokenizer.encode(prompt.messages[-1].content, is_data=True), *after]
    await runner.close()
    unknown = 1  # the id that a word-level vocabulary gives to an unknown word
    assert (
        [i for i in read_by_policy if i != unknown] == [i for i in read_by_judge if i != unknown] == [3, 6, 7, 8, 5, 4]
    )


# ---- vLLM's own traps


@pytest.fixture(scope="module")
def vllm_engine(checkpoints: dict[str, Path]) -> Iterator[Any]:
    built = build_engine(config_of(checkpoints["llama-tied"], "vllm"), name="trap")
    yield built
    built.close()


def test_more_prompts_than_fit_into_a_step_are_all_answered(vllm_engine: Engine):
    rng = np.random.default_rng(77)
    requests = [
        Request(
            request_id=f"long{i}",
            prompt_token_ids=tuple(int(t) for t in rng.integers(6, VOCAB, 110)),
            max_tokens=3,
            seed=i,
        )
        for i in range(100)
    ]
    assert len(finish(vllm_engine, requests)) == 100


def test_prompts_share_common_prefixes_in_blocks_of_sixteen_tokens_without_loss_of_accuracy(vllm_engine: Engine):
    weights, network = make_weights("llama-tied", version=vllm_engine.version + 1)
    vllm_engine.load_weights(weights)
    ids = tuple(int(token) for token in np.random.default_rng(3).integers(6, VOCAB, 90))
    for shared, cached in ((15, 0), (20, 16), (55, 48), (85, 80)):
        request = Request(request_id="r", prompt_token_ids=(*ids[:shared], 6, 7, 8), max_tokens=4)
        finish(vllm_engine, [replace(request, prompt_token_ids=(*ids[:shared], 9, 10))])
        (completion,) = finish(vllm_engine, [request])
        assert completion.cached_tokens == cached
        assert behaviour_gap([request], [completion], network) < 1e-4


def test_a_prefix_cached_under_old_weights_is_never_used_by_new_requests(vllm_engine: Engine):
    prompt = tuple(int(token) for token in np.random.default_rng(0).integers(6, VOCAB, 100))
    request = Request(request_id="r", prompt_token_ids=prompt, max_tokens=4)
    assert finish(vllm_engine, [request])[0].cached_tokens == 0
    assert finish(vllm_engine, [request])[0].cached_tokens == 96
    vllm_engine.load_weights(make_weights("llama-tied", version=7)[0])
    assert finish(vllm_engine, [request])[0].cached_tokens == 0
    assert finish(vllm_engine, [request])[0].cached_tokens == 96


def test_a_prefix_cached_under_other_weights_of_the_same_version_is_never_used(vllm_engine: Engine):
    ids = tuple(int(token) for token in np.random.default_rng(5).integers(6, VOCAB, 100))
    request = Request(request_id="r", prompt_token_ids=ids, max_tokens=4)
    vllm_engine.load_weights(make_weights("llama-tied", version=20)[0])
    finish(vllm_engine, [request])
    weights, network = make_weights("llama-tied", version=21)
    vllm_engine.load_weights(replace(weights, version=20))
    (completion,) = finish(vllm_engine, [request])
    assert completion.cached_tokens == 0
    assert behaviour_gap([request], [completion], network) < 1e-4


def test_no_answer_verdict_or_attestation_reads_the_cache_of_any_version_that_was_loaded_before(vllm_engine: Engine):
    """Versions come back as well: their prefixes were cached, and running requests wrote on with later weights."""
    ids = tuple(int(token) for token in np.random.default_rng(11).integers(6, VOCAB, 64))
    versions = {version: make_weights("llama-tied", version=version) for version in (31, 32, 33)}
    for turn, version in enumerate((31, 32, 31, 33, 32, 31)):
        weights, network = versions[version]
        vllm_engine.load_weights(weights)
        requests = [
            Request(request_id=f"{turn}-{n}", prompt_token_ids=(*ids, 6 + n), max_tokens=6, seed=turn) for n in range(3)
        ]
        verdict = replace(requests[0], request_id="verdict", label_ids=(7, 8), max_tokens=1)
        first, *others = finish(vllm_engine, requests[:1]) + finish(vllm_engine, [*requests[1:], verdict])
        assert first.cached_tokens == 0
        assert {completion.cached_tokens for completion in others} == {64}
        answers = [first, *(c for c in others if c.request_id != "verdict")]
        by_id = {request.request_id: request for request in requests}
        assert behaviour_gap([by_id[c.request_id] for c in answers], answers, network) < 1e-4
        (logprobs,) = hf_logprobs(network, [(*verdict.prompt_token_ids, 7)])
        (labels,) = (c.label_logprobs for c in others if c.request_id == "verdict")
        assert labels[0] == pytest.approx(logprobs[-1], abs=1e-4)
        assert canary_gap(vllm_engine, weights) < 1e-4
        long = Request(request_id="long", prompt_token_ids=(*ids, 20), max_tokens=12, seed=turn)
        vllm_engine.add(long)  # still runs when the next version comes
        vllm_engine.step()
        vllm_engine.step()
    finish(vllm_engine)


def queued_twice(engine: Engine, *, running: int, max_tokens: int) -> list[Request]:
    """Twice as many requests as run together, whose prompts share all cache blocks but the last."""
    shared = tuple(int(token) for token in np.random.default_rng(41).integers(6, VOCAB, 48))
    requests = [
        Request(request_id=f"q{i}", prompt_token_ids=(*shared, 6 + i, 7), max_tokens=max_tokens, seed=i)
        for i in range(2 * running)
    ]
    for request in requests:
        engine.add(request)
    return requests


def test_answers_that_wait_while_weights_change_use_no_cache_of_the_old_ones(checkpoints: dict[str, Path]):
    config = config_of(checkpoints["llama-tied"], "vllm").model_copy(update={"max_running": 4})
    engine: Any = build_engine(config, name="queued")
    try:
        engine.load_weights(make_weights("llama-tied", version=1)[0])
        requests = {r.request_id: r for r in queued_twice(engine, running=4, max_tokens=30)}
        done = [completion for _ in range(3) for completion in engine.step()]
        # One that vLLM was given and has not begun: it waits inside, with the old name for its prefix.
        engine._client.engine_core.scheduler.max_num_active_reqs = 2
        engine.abort(["q0"])
        done += engine.step()
        begun = {c.request_id for c in [*done, *engine.unfinished()]}
        assert len(begun) == 3
        weights, network = make_weights("llama-tied", version=2)
        engine.load_weights(weights)
        engine._client.engine_core.scheduler.max_num_active_reqs = 8
        done += finish(engine)
        assert {c.request_id for c in done} == requests.keys() - {"q0"}
        after = [c for c in done if c.request_id not in begun]
        assert all(c.segments == ((2, len(c.token_ids)),) for c in after)
        assert behaviour_gap([requests[c.request_id] for c in after], after, network) < 1e-4
        assert max(c.cached_tokens for c in after) == 48  # of the new weights, by one of the others
    finally:
        engine.close()


@pytest.mark.parametrize("cache_gib", [0.05, 0.0003])
def test_an_attestation_waits_for_one_step_but_not_for_running_answers(checkpoints: dict[str, Path], cache_gib: float):
    settings = {
        "max_running": 4,
        "kv_cache_gib": cache_gib,
    }  # the smaller one is full when the answers are half done
    engine: Any = build_engine(config_of(checkpoints["llama-tied"], "vllm").model_copy(update=settings), name="asked")
    try:
        requests = queued_twice(engine, running=4, max_tokens=70)
        done = [completion for _ in range(20) for completion in engine.step()]
        pumped: list[int] = []
        pump = engine._pump
        engine._pump = lambda: (pumped.append(1), pump())
        weights, _ = make_weights("llama-tied", version=3)
        canaries = tuple(weights.canary_token_ids[0][i:] for i in range(4))
        engine.load_weights(weights)
        assert len(engine.sequence_logprobs(canaries)) == 4
        assert len(pumped) == 1
        assert canary_gap(engine, weights) < 1e-4
        assert len(pumped) == 2
        done += finish(engine)
        assert {c.request_id for c in done} == {r.request_id for r in requests}
        assert all(len(c.token_ids) == 70 or c.finish_reason == "stop" for c in done)
        assert all(sum(count for _, count in c.segments) == len(c.token_ids) for c in done)
    finally:
        engine.close()


def test_an_engine_whose_cache_holds_fewer_answers_decodes_fewer_together_and_preempts_less(
    checkpoints: dict[str, Path],
):
    def run(adapts: bool) -> tuple[int, list[int], list[Completion]]:
        # A cache of about 600 tokens: at their end five answers fit, eight may run.
        settings = {"max_running": 8, "kv_cache_gib": 0.0006, "adapts_running": adapts}
        engine: Any = build_engine(config_of(checkpoints["llama-tied"], "vllm").model_copy(update=settings), name="x")
        try:
            preempted: list[Any] = []
            scheduler = engine._core.scheduler
            preempt = scheduler._preempt_request
            scheduler._preempt_request = lambda *a, **named: (preempted.append(a), preempt(*a, **named))[1]
            draw = np.random.default_rng(7)
            for number in range(32):
                prompt = tuple(int(token) for token in draw.integers(6, VOCAB, 20))
                least = Filters(min_tokens=90)
                engine.add(
                    Request(request_id=str(number), prompt_token_ids=prompt, max_tokens=90, filters=least, seed=number)
                )
            done, places = [], []
            while engine.has_work():
                done += engine.step()
                places.append(engine._queue.places)
            return len(preempted), places, done
        finally:
            engine.close()

    preempted, places, done = run(adapts=True)
    always, fixed, all_done = run(adapts=False)
    assert {c.request_id for c in done} == {c.request_id for c in all_done} == {str(n) for n in range(32)}
    assert all(len(c.token_ids) == 90 for c in [*done, *all_done])
    assert set(fixed) == {8}
    assert (places[0], max(places)) == (8, 8)
    assert 1 <= min(places) < 8
    assert preempted < always


def test_transformers_builds_a_model_that_vllm_has_served_through_its_classes(tmp_path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "olmo2", vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, eos_token_id=5, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    before = AutoModelForCausalLM.from_config(config).eval()
    before.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    engine = build_engine(config_of(tmp_path, "vllm"), name="olmo2")
    try:
        after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        sequences = [request.prompt_token_ids for request in make_requests(4)]
        for network in (before, after):
            for one, other in zip(engine.sequence_logprobs(sequences), hf_logprobs(network, sequences), strict=True):
                assert np.abs(np.subtract(one, other)).max() < 1e-5
    finally:
        engine.close()


def test_a_load_that_forgets_the_tied_head_is_caught_by_the_canary(
    vllm_engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    from solon.engines import vllm_weights

    weights, _ = make_weights("llama-tied", version=8)
    with monkeypatch.context() as naive:
        naive.setattr(vllm_weights, "refresh_tied", lambda stale: None)
        vllm_engine.load_weights(weights)
    assert canary_gap(vllm_engine, weights) > 0.1
    stale = vllm_engine.checksum()
    vllm_engine.load_weights(weights)
    assert vllm_engine.checksum() != stale
    assert canary_gap(vllm_engine, weights) < 1e-4


def test_a_failed_load_leaves_the_engine_unusable(checkpoints: dict[str, Path]):
    engine = build_engine(config_of(checkpoints["llama"], "vllm"), name="half")
    weights, _ = make_weights("llama", version=1, leave_out="model.layers.1.mlp.down_proj.weight")
    with pytest.raises(RunFailedError, match=r"down_proj|stale|lack"):
        engine.load_weights(weights)
    assert engine.version == 0
    with pytest.raises(RunFailedError, match="unusable"):
        engine.add(make_requests(1)[0])
    engine.close()


def test_closing_one_engine_leaves_its_neighbour_alive(vllm_engine: Engine, checkpoints: dict[str, Path]):
    build_engine(config_of(checkpoints["qwen2"], "vllm"), name="neighbour").close()
    weights, _ = make_weights("llama-tied", version=9)
    vllm_engine.load_weights(weights)
    assert canary_gap(vllm_engine, weights) < 1e-4


async def test_engines_of_one_process_may_be_built_and_used_and_closed_at_once(checkpoints: dict[str, Path]):
    def runner(name: str) -> EngineRunner:
        return EngineRunner(lambda: build_engine(config_of(checkpoints["llama"], "vllm"), name=name), name=name)

    async def answers(runner: EngineRunner) -> list[tuple[int, ...]]:
        return [tuple(map(int, c.token_ids)) for c in await runner.generate(make_requests(4))]

    async def life(name: str) -> list[list[tuple[int, ...]]]:
        one = runner(name)
        try:
            return [await answers(one) for _ in range(3)]
        finally:
            await one.close()

    first = runner("first")
    try:
        expected = await answers(first)
        lives = await asyncio.gather(*(life(f"other {n}") for n in range(4)), *(answers(first) for _ in range(20)))
    finally:
        await first.close()
    assert lives == [*[[expected] * 3] * 4, *[expected] * 20]


def test_an_int8_judge_gives_verdicts_and_refuses_new_weights(checkpoints: dict[str, Path], tmp_path: Path):
    shutil.copytree(checkpoints["llama"], tmp_path, dirs_exist_ok=True)
    quantise_int8(tmp_path)
    engine = build_engine(config_of(tmp_path, "vllm"), name="int8")
    network = make_network("llama", seed=0)
    requests = [replace(request, label_ids=(7, 8), max_tokens=1) for request in make_requests(16)]
    for request, completion in zip(requests, finish(engine, requests), strict=True):
        margin = completion.label_logprobs[0] - completion.label_logprobs[1]
        exact = [hf_logprobs(network, [[*request.prompt_token_ids, label]])[0][-1] for label in (7, 8)]
        assert margin == pytest.approx(exact[0] - exact[1], abs=0.25)
    with pytest.raises(InputError, match="quantised"):
        engine.load_weights(make_weights("llama", version=1)[0])
    engine.close()


# ---- fewer bits


def mean_gap(engine: Engine, *, seed: int = 0) -> float:
    """Mean difference between an engine's log-probs and those of the network before it was quantised."""
    sequences = [request.prompt_token_ids for request in make_requests(16)]
    exact = hf_logprobs(make_network("llama", seed=seed), sequences)
    computed = engine.sequence_logprobs(sequences)
    return float(np.mean(np.concatenate([np.abs(np.subtract(a, b)) for a, b in zip(computed, exact, strict=True)])))


@pytest.fixture(scope="module")
def smaller(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The plain Llama in every scheme."""
    from compression.quantise import SCHEMES, quantise_model

    root = tmp_path_factory.mktemp("smaller")
    prompts = [request.prompt_token_ids for request in make_requests(32)]
    for scheme in SCHEMES:
        quantise_model(checkpoints["llama"], root / scheme, scheme, calibration=prompts)
    return {scheme: root / scheme for scheme in SCHEMES}


@pytest.mark.parametrize(
    ("scheme", "dtype", "gap"),
    [
        ("w8a8", "auto", 0.1),
        ("w8a8-gptq", "auto", 0.1),
        ("fp8", "auto", 0.25),
        # vLLM's four-bit kernel for CPUs takes no float32.
        ("w4a16", "bfloat16", 0.7),
        ("w4a16-gptq", "bfloat16", 0.4),
    ],
)
def test_vllm_serves_every_scheme_close_to_the_original(smaller: dict[str, Path], scheme: str, dtype: str, gap: float):
    engine = build_engine(config_of(smaller[scheme], "vllm", dtype=dtype), name=scheme)
    try:
        assert 1e-4 < mean_gap(engine) < gap  # below, it would be the original
        requests = [replace(request, label_ids=(7, 8), max_tokens=1) for request in make_requests(16)]
        assert all(max(completion.label_logprobs) < 0 for completion in finish(engine, requests))
    finally:
        engine.close()


def test_gptq_on_the_right_prompts_loses_less_than_rounding(smaller: dict[str, Path]):
    gaps = {}
    for scheme in ("w4a16", "w4a16-gptq"):
        engine = build_engine(config_of(smaller[scheme], "transformers"), name=scheme)
        gaps[scheme] = mean_gap(engine)
        engine.close()
    assert gaps["w4a16-gptq"] < 0.8 * gaps["w4a16"]


@pytest.mark.parametrize(("quantization", "gap"), [("bnb_int8", 0.1), ("bnb_nf4", 0.7)])
def test_bitsandbytes_quantises_while_loading(checkpoints: dict[str, Path], quantization: str, gap: float):
    pytest.importorskip("bitsandbytes")
    engine = build_engine(config_of(checkpoints["llama"], "transformers", quantization=quantization), name="small")
    try:
        assert 1e-4 < mean_gap(engine) < gap
        completions = finish(engine, make_requests(8, max_tokens=6))
        assert all(0 < len(completion.token_ids) <= 6 for completion in completions)
        with pytest.raises(InputError, match="quantised"):
            engine.load_weights(make_weights("llama", version=1)[0])
    finally:
        engine.close()


def test_bitsandbytes_refuses_a_quantised_model(smaller: dict[str, Path]):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(InputError, match="quantised already"):
        build_engine(config_of(smaller["w8a8"], "transformers", quantization="bnb_nf4"), name="twice")


def test_a_judge_is_measured_in_its_own_process(tmp_path: Path):
    from solon.engines.base import EngineOptions
    from solon.feedback.trials.candidates import comparing, measure_apart, parse_candidate
    from solon.feedback.trials.comparison import compare
    from tests.models import make_model
    from tests.unit.compression.test_quantise import make_constitution, make_pairs

    options = EngineOptions(backend="transformers", max_model_len=256)
    candidate = parse_candidate(str(make_model(tmp_path / "judge")), options)
    feedback, rules = comparing("compact", min_mass=1e-6), make_constitution()
    measurement = measure_apart(candidate, make_pairs(40), rules, feedback, parts=4)
    assert [part.verdicts for part in measurement.parts] == [10] * 4
    assert measurement.questions == 80
    assert measurement.disk_bytes == sum(file.stat().st_size for file in (tmp_path / "judge").glob("*.safetensors"))
    assert 1e8 < (measurement.resident_bytes or 0) < 1e10
    assert compare([measurement], make_pairs(40)).rows[0].position_consistency is not None
    broken = replace(candidate, engine=candidate.engine.model_copy(update={"model": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="no model directory"):
        measure_apart(broken, make_pairs(40), rules, feedback, parts=4)


async def test_a_runner_serves_a_real_engine_from_its_own_thread(checkpoints: dict[str, Path]):
    runner = EngineRunner(lambda: build_engine(config_of(checkpoints["llama-tied"], "vllm"), name="threaded"))
    requests = make_requests(24, max_tokens=30)
    weights, _ = make_weights("llama-tied", version=4)
    generating = [asyncio.create_task(runner.generate(requests[i : i + 8])) for i in (0, 8, 16)]
    await runner.ready()
    receipt = await runner.load_weights(weights)
    assert receipt.canary_logprobs[0] == pytest.approx(weights.canary_logprobs[0], abs=1e-4)
    assert (receipt.engine, receipt.version, receipt.fingerprint) == ("threaded", 4, weights.fingerprint)
    assert [c.request_id for call in generating for c in await call] == [f"r{i}" for i in range(24)]
    verdicts = await runner.score([request.prompt_token_ids for request in requests], (7, 8))
    assert all(len(verdict.label_logprobs) == 2 for verdict in verdicts)
    assert runner.drain_spans()
    await runner.close()


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_a_missing_model_is_an_input_error(tmp_path: Path, backend: str):
    with pytest.raises(InputError, match="no model directory"):
        build_engine(config_of(tmp_path / "nowhere", backend), name="none")
    with pytest.raises(InputError, match=r"no config\.json"):
        build_engine(config_of(tmp_path, backend), name="none")
