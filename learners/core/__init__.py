"""Training, independent of the objective.

Start with `trainer`, the only training loop, and `objective`, its interface to an objective. `config` has the settings
of optimiser, schedule and network; `policy_objective` is the base of objectives that train the published policy on
labelled groups, `course` feeds a fixed data set to a trainer. Knows no particular objective.
"""
