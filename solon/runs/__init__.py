"""The run directory: what is written when, in which format, and how a reader knows that it is whole.

Start with `directory`, the writer; `tables` has the Parquet columns, `integrity` the counts and digests that find a cut
file, `columns` and `objects` the meaning of every column and key (docs/data.md is made from them).
May import: errors, records, host, files.
"""
