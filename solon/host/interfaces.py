"""The network interface over which processes of several machines talk."""

from __future__ import annotations

import os

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that name an interface for the libraries with which ranks exchange tensors."""


def interface_of(address: str) -> str:
    """The name of the interface of this machine that has the address; empty: none has."""
    import psutil  # type: ignore[import-untyped]  # comes with Ray, which puts it on the path

    for name, addresses in psutil.net_if_addrs().items():
        # An address of IPv6 may end with its scope, as in fe80::1%eth0.
        if any(one.address.partition("%")[0] == address for one in addresses):
            return str(name)
    return ""


def talk_over(address: str) -> None:
    """From now on gloo and NCCL of this process use the interface with this address, unless the environment names
    another: gloo's own choice, the one of the machine's name, is often an address that other machines do not reach."""
    if name := interface_of(address):
        for variable in VARIABLES:
            os.environ.setdefault(variable, name)
