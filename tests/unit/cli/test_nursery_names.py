"""Names of the nursery are checked before anything is grown."""

from __future__ import annotations

import pytest

from nursery import grow as growing
from solon.cli.judge_inputs import model_path
from solon.cli.nursery_names import resolver
from solon.errors import InputError


def test_an_unknown_nursery_name_is_refused_before_anything_grows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growing, "grow", lambda **_: pytest.fail("it grew"))
    with pytest.raises(InputError, match=r"got the name `nursery:larg_judge`.*nursery:large_judge"):
        resolver(["nursery:policy", "nursery:larg_judge"], progress=False)
    with pytest.raises(InputError, match=r"got the name `nursery:juge`.*nursery:judge"):
        model_path("nursery:juge@bf16", progress=False)
