"""The state or the end of a run and the next action, from its files alone.

Start with `facts`, which reads them, and `diagnosis`, which is pure: facts in, findings with remedies out. `ending`
describes the end of a run, `status` which worker waits for which.
May import: runs, checkpoints, ledger, feedback, telemetry.
"""
