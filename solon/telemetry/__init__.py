"""What a run reports while it runs: records on disk, running totals, traces, and the overlap of the lanes.

Start with `recorder`, which writes from its own thread; `totals` makes metrics and summary, `movement` finds the steps
that moved the policy.
May import: runs, ledger, feedback and the protocols of the loop.
"""
