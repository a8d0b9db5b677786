"""The models that whole runs need."""

from tests.e2e.conftest import nursery

__all__ = ["nursery"]
