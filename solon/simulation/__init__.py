"""A run on paper: the loop, ledger, pools, publication and recovery of a real run, under a virtual clock, with lanes
that only take time. No torch, no Ray, no model.

Start with `scenario`, which says what is simulated, and `run.simulate`, which does it; `outcome` is the result.
`stations` holds the time models, `draws` everything random, `lanes` and `learner` the simulated processes.
May import: everything up to recovery.
"""
