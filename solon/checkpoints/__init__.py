"""Checkpoints: written beside their place, verified, renamed into it, and copied to a second place.

Start with `folder`; `held_groups` stores the groups that are generated but not trained, `remote` uploads and fetches,
`room` reserves the space for the next one.
May know: errors, records, host, files, ledger, runs.
"""
