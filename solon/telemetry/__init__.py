"""What a run reports while it runs: records on disk, running totals, traces, how well the lanes overlap.

Start with `recorder`, which writes from a thread of its own; `totals` makes metrics and summary, `movement` tells which
steps moved the policy.
May import: runs, ledger, feedback and the protocols of the loop.
"""
