from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.learner_builders import write_llama, write_tokenizer

pytestmark = pytest.mark.engine
TOLERANCE = 0.25
"""Of the measurement; the estimate has no term for fragmentation and none for the small tensors of a batch."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """11 M parameters, many of them in the vocabulary, so that logits are a large part of the memory."""
    folder = tmp_path_factory.mktemp("model")
    write_llama(
        folder,
        vocab_size=32000,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    write_tokenizer(folder)
    return str(folder)


@pytest.mark.parametrize(
    "settings", [{}, {"advantages": "group", "kl_coefficient": 0.0, "gradient_checkpointing": True}]
)
def test_a_learner_uses_the_estimated_memory(model: str, settings: dict[str, Any]):
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.learner_memory_subject", model, json.dumps(settings)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["estimated"] == pytest.approx(found["measured"], rel=TOLERANCE), found
