"""Pools that follow the load: how many engines and judges a run needs now, and who adds and removes them.

Start in `decide.py`: a pure function from measurements to sizes with reasons. `service.py` measures how long a lane
takes for a group, `controller.py` resizes the pools, `draining.py` empties a machine that is about to go. Knows pools,
not Ray: starting a worker and asking which machines go are functions that it is given.
"""
