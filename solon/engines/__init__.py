"""Engines: token ids in, token ids and log-probabilities out.

Start with `base`, the interface, then `build`, which chooses vLLM, Transformers or a fake. Each heavy library is
imported when its engine is built. `queue` holds requests in front of an engine, `live_weights` verifies loaded weights.
May import: errors, records, files, models.
"""
