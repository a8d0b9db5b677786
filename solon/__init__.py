"""Solon: asynchronous reinforcement learning from AI feedback, on Ray."""

__version__ = "0.1.0"
