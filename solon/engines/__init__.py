"""Engines: token ids in, token ids and log-probabilities out.

Start with `base`, the interface, then `build`, which chooses vLLM, Transformers or a fake. Each heavy library is
imported when its engine is built. `queue` schedules requests in front of an engine, `live_weights` swaps weights.
May know: errors, records, files, models.
"""
