"""Workers that die or hang are replaced, within bounds, while the loop continues without them.

Start with `guard`, which watches one worker. `supervised_lanes` is the loop's view of it, `restarts` bounds how often a
worker is replaced, `start_limit` how long a start may take.
May import: clock, ledger, feedback and the protocols of the loop.
"""
