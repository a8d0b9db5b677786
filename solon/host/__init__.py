"""The machine that a process runs on: its processes, the account's folders, space on the disk, which code is imported.

Start with `own_code`, which decides what is imported, or `ballast`, which keeps a run writing on a full disk.
May know: errors. Nothing here knows what a run is.
"""
