"""Checkpoints: written to a scratch folder, verified, renamed into place, and copied to a second location.

Start with `folder`; `held_groups` stores groups that are generated but not trained, `remote` uploads and downloads,
`room` reserves disk space for the next one.
May import: errors, records, host, files, ledger, runs.
"""
