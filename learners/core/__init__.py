"""Training that does not know what is minimised.

Start with `trainer`, the only training loop, and `objective`, what it asks of an objective. `config` has the settings
of optimiser, schedule and network; `policy_objective` is the base of objectives that train the published policy on
labelled groups, `course` feeds a fixed data set to a trainer. Knows nothing of the objectives.
"""
