"""Ranks on several machines talk over the interface by which Ray knows the machine."""

from __future__ import annotations

import os

import pytest

from solon.host.interfaces import VARIABLES, interface_of, talk_over


def test_the_interface_is_that_of_the_address_and_a_set_variable_is_kept(monkeypatch: pytest.MonkeyPatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") == ""
    talk_over("203.0.113.77")
    assert not any(os.environ.get(variable) for variable in VARIABLES)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    talk_over("127.0.0.1")
    assert [os.environ[variable] for variable in VARIABLES] == ["lo", "ib0"]
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
