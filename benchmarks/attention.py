"""Multi-head, grouped-query and multi-query attention: cache, speed and quality of three models grown alike.

    python benchmarks/attention.py [--steps N] [--quick] [--json PATH]

Three small Llamas differ only in the number of key-value heads: 8, 2 and 1 of 8. Each learns the nursery's
conversations from nothing, the same steps on the same batches; the loss is that of held-out ones. The cache is counted
twice: from the configuration as `solon inspect` does, and from the tensors that vLLM allocates for a token. Answers per
second are vLLM's at a concurrency of 64.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._harness import Row, arguments, report

HEADS, HEAD_SIZE, LAYERS = 8, 32, 4
VARIANTS = {"multi-head": 8, "grouped-query": 2, "multi-query": 1}
BATCH, LENGTH = 32, 64


def fresh(kv_heads: int, tokenizer: Any) -> Any:
    """A model that has learnt nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer.hf), hidden_size=HEADS * HEAD_SIZE, intermediate_size=512, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=kv_heads, head_dim=HEAD_SIZE, max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.hf.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def conversations(number: int, seed: int) -> list[list[int]]:
    """Token ids of the nursery's prompts with answers, an end of turn after each."""
    from nursery.language import WordEncoder
    from nursery.lessons import converse

    return [[*prompt, *answer][:LENGTH] for prompt, answer in converse(random.Random(seed), WordEncoder(), number)]


def learn(
    network: Any, rows: Sequence[Sequence[int]], heldout: Sequence[Sequence[int]], steps: int
) -> tuple[float, float]:
    """(held-out loss, tokens learnt per second)."""
    import numpy as np
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    rng, tokens, started = np.random.default_rng(0), 0, time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        chosen = [rows[number] for number in rng.integers(0, len(rows), BATCH)]
        loss = _loss(network, chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        tokens += sum(map(len, chosen))
    rate = tokens / (time.perf_counter() - started)
    with torch.no_grad():
        parts = [heldout[i : i + BATCH] for i in range(0, len(heldout), BATCH)]
        return float(np.mean([_loss(network.eval(), part).item() for part in parts])), rate


def _loss(network: Any, rows: Sequence[Sequence[int]]) -> Any:
    import torch

    width = max(map(len, rows))
    ids_BT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in rows])
    mask_BT = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in rows])
    return network(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT.masked_fill(mask_BT == 0, -100)).loss


def serve(folder: Path, prompts: Sequence[Sequence[int]], *, answers: int) -> tuple[float, float]:
    """(answers per second, bytes of cache for a token) of vLLM."""
    from solon.engines.base import EngineConfig, Request
    from solon.engines.build import build_engine

    engine: Any = build_engine(EngineConfig(model=str(folder), max_model_len=256, max_running=64), name="policy")
    try:
        spec = next(iter(engine._core.model_executor.get_kv_cache_specs()[0].values()))
        layers = len(engine._core.model_executor.get_kv_cache_specs()[0])
        per_token = spec.page_size_bytes / spec.block_size * layers

        def run(count: int) -> float:
            started = time.perf_counter()
            for number in range(count):
                prompt = tuple(prompts[number % len(prompts)])
                engine.add(Request(request_id=str(number), prompt_token_ids=prompt, max_tokens=32, seed=number))
            while engine.has_work():
                engine.step()
            return count / (time.perf_counter() - started)

        run(32)
        return run(answers), float(per_token)
    finally:
        engine.close()


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    steps = 5 if options.quick else options.steps

    import torch

    from solon.cli.names import resolver
    from solon.engines.model_files import copy_companions
    from solon.engines.tokens import ChatTokenizer
    from solon.models.facts import read_facts
    from solon.models.sizes import sizes_of

    torch.set_num_threads(2)
    policy = resolver(["nursery:policy"], progress=False)("nursery:policy")
    tokenizer = ChatTokenizer.load(policy)
    rows, heldout = conversations(4000, 0), conversations(256, 1)
    found: dict[str, tuple[float, ...]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, kv_heads in VARIANTS.items():
            folder = Path(place) / name
            network = fresh(kv_heads, tokenizer)
            loss, rate = learn(network, rows, heldout, steps)
            network.save_pretrained(folder)
            copy_companions(Path(policy), folder)
            sizes = sizes_of(read_facts(folder))
            assert sizes is not None
            said = sizes.cached_elements * 4
            speed, held = serve(folder, [ids[:16] for ids in heldout], answers=64 if options.quick else 512)
            found[name] = (said, held, loss, rate, speed)
            print(f"{name}: {found[name]}", flush=True)
    report("attention", table(found), options.json)


def table(found: dict[str, tuple[float, ...]]) -> list[Row]:
    base = found["multi-head"]
    rows = []
    for name, (said, held, loss, rate, speed) in found.items():
        share = VARIANTS[name] / HEADS
        rows += [
            Row(f"{name}: cache of a token by its configuration, bytes (reference: multi-head)", said, base[0]),
            Row(f"{name}: the same as vLLM allocates it (reference: by its configuration)", held, said),
            Row(f"{name}: cache over {share:g} of multi-head's", said / (share * base[0]), goal=">= 1.0"),
            Row(f"{name}: held-out loss, nats (reference: multi-head)", loss, base[2]),
            Row(f"{name}: tokens learnt per second (reference: multi-head)", rate, base[3]),
            Row(f"{name}: answers per second (reference: multi-head)", speed, base[4]),
        ]
    return rows


if __name__ == "__main__":
    main()
