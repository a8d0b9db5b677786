"""Planning before renting: memory of each role, service times, the split of devices over the lanes, and what to expect.

Start at `planner.make_plan`. `rates.Rates` is the border between what is known of a machine and what follows from it:
`measuring` makes one by running each role alone, here; `roofline` makes one from published rates of a device
(`hardware.toml`). `prediction` gives both to `solon.simulation`; `contention` says what lanes lose to each other where
they share cores or a device. Ray is never started here.
"""
