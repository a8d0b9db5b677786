"""Messages of an engine about a request that it refuses."""

from __future__ import annotations

import pytest

from solon.engines.admission import check_ids, check_request
from solon.engines.base import Request
from solon.errors import InputError

NAMES = {3: "<think>", 4: "</think>"}


def test_token_ids_beyond_the_embedding_are_named_with_the_model_and_the_remedy():
    request = Request(request_id="2", prompt_token_ids=(0, 3), max_tokens=1, temperature=1.0, seed=0)
    with pytest.raises(InputError) as caught:
        check_request(request, max_model_len=9, vocab_size=3, model="org/m", name=lambda i: NAMES.get(i, ""))
    assert str(caught.value).startswith(
        "request '2' holds the token '<think>' (id 3), expected ids of 0 to 2, the rows of the embedding of org/m; the "
        "tokenizer has tokens that the model lacks"
    )
    assert "resize_token_embeddings" in str(caught.value)


def test_unknown_token_ids_are_attributed_to_another_tokenizer():
    with pytest.raises(InputError, match=r"holds the tokens 8, 9, expected .*; use its own tokenizer"):
        check_ids("request '2'", (0, 8, 9), 3, model="org/m", name=lambda i: NAMES.get(i, ""))
