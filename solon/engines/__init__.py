"""Engines: token ids in, token ids and log-probabilities out. Each heavy library is imported when its
engine is built, never before."""
