"""The machine of a process: its processes, the account's folders, disk space, and which code is imported.

Start with `own_code`, which controls imports, or `ballast`, which lets a run write on a full disk.
May import: errors. Nothing here depends on runs.
"""
