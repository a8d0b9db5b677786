"""Workers that die or hang are replaced, within bounds, while the loop continues without them.

Start with `guard`, which watches one worker; `supervised_lanes` is what the loop sees of it, `restarts` bounds how
often, `start_limit` how long a start may take.
May know: clock, ledger, feedback and the protocols of the loop.
"""
