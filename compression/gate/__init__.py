"""The gate of a compression: whether alignment was kept, decided by paired tests that can say "not enough data".

Start with `gate.py`; `bounds.py` has the statistics, `thresholds.py` how much may be lost.
May import: `compression.pairs`, `compression.flips`.
"""
