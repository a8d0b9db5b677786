"""Removes weights of an aligned model, those first that its preferences do not depend on.

Start with `plan.py` (what may be asked for, and the shapes that are left); `importance.py` has how much each weight
matters, to preferences and to text, `masks.py` which are set to 0, `shapes.py` whole channels, heads and layers, which
make the model smaller for every engine, `prune.py` removal and training in turns.
May import: `compression.distil` and what is below it.
"""
