"""Every architecture that Solon names, from the checkpoint to the quantised copy, on both engines.

Rows are shorter and longer than a window, prompts shared and alone in one microbatch, prompts padded on the left in the
Transformers engine and on the right in the learner, temperatures 0.7, 1 and 1.3; all in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from solon.errors import InputError
from tests.architectures import LENGTH_DEPENDENT, ORIGINAL_LENGTH
from tests.e2e.models.refusals import MATRIX, refusal_of
from tests.e2e.models.stages import EXACT, STAGES, Stage, read_by
from tests.e2e.models.subject import Subject

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=MATRIX)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    made = Subject(request.param, tmp_path_factory.mktemp("models"))
    yield made
    made.close()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_exact_or_refused_with_its_reason(subject: Subject, stage: Stage):
    refusal = refusal_of(subject.name, stage.name)
    if refusal is None:
        assert stage.measure(subject) <= stage.bound
    else:
        with pytest.raises(InputError, match=refusal.words):
            stage.measure(subject)


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_positions_that_depend_on_the_longest_text_agree_up_to_the_original_context(tmp_path, name: str, backend: str):
    subject = Subject(name, tmp_path, length=ORIGINAL_LENGTH)
    try:
        assert max(map(len, subject.sequences)) == ORIGINAL_LENGTH - 1
        assert read_by(backend)(subject) <= EXACT
        subject.length += 1
        with pytest.raises(InputError, match=f"max_model_len = {ORIGINAL_LENGTH} or less"):
            subject.engine_of(subject.path, backend)
    finally:
        subject.close()
