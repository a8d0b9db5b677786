"""How a thinking judge's thoughts are sampled; part of its identity."""

from __future__ import annotations

from solon.records import Filters, Sampling

THOUGHT_SAMPLING = Sampling(max_tokens=1, temperature=0.6, filters=Filters(top_p=0.95, top_k=20))
"""At temperature 0 thinking models repeat themselves; this is what Qwen3's card recommends."""
