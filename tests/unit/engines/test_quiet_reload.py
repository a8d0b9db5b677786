"""What vLLM says of layers without tensors at every version is left out; anything else is not."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from solon.engines import vllm_weights


@pytest.mark.parametrize(
    ("quiet", "expected"), [(True, ["other"]), (False, ["Rotary: Failed to load weights", "other"])]
)
def test_a_layer_without_tensors_is_left_out_where_the_model_says_what_it_loaded(
    quiet: bool, expected: list[str], caplog: pytest.LogCaptureFixture
):
    logger = logging.getLogger(vllm_weights._RELOAD)
    logger.addHandler(caplog.handler)  # vLLM's own logger hands nothing on
    try:
        with vllm_weights._quiet(quiet):
            logger.warning("%s: Failed to load weights", "Rotary")
            logger.warning("other")
    finally:
        logger.removeHandler(caplog.handler)
    assert list(dict.fromkeys(caplog.messages)) == expected
    assert not logger.filters


def test_these_are_vllm_s_words_in_that_module():
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations
    path = Path(found.submodule_search_locations[0]).joinpath(*vllm_weights._RELOAD.split(".")[1:])
    assert '"%s: Failed to load weights"' in path.with_suffix(".py").read_text()
