"""An engine of several processes (tensor parallel): each rank holds a part of every large tensor.

Start at `leading.py`. The first rank takes the calls of the engine's owner and tells the others (`following.py`) over
`meeting.py` what to do before the next step, so that all do the same between the same steps. `shards.py` says which
part of a published tensor a rank holds. Knows `solon.engines`, and no Ray.
"""
