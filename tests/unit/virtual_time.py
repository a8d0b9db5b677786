"""The virtual event loop of the simulator, which tests use as well."""

from solon.simulation.virtual_time import EPOCH, VirtualLoop, run_virtual

__all__ = ["EPOCH", "VirtualLoop", "run_virtual"]
