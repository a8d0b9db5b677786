"""The run directory: its files, their formats, and how a reader verifies that they are whole.

Start with `directory`, the writer; `tables` has the Parquet columns, `integrity` the counts and digests that detect a
cut file, `columns` and `objects` the meaning of every column and key (docs/data.md is generated from them).
May import: errors, records, host, files.
"""
