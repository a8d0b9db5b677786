"""How a run stands or ended, and what a person should do about it, from its files alone.

Start with `facts`, which reads them, and `diagnosis`, which is pure: facts in, findings with remedies out. `ending`
words the end of a run, `status` says which worker waits for which.
May import: runs, checkpoints, ledger, feedback, telemetry.
"""
