"""`solon check`: everything about a run that can be checked before an engine starts.

Start with `checks`, which runs them all. Each other module checks one thing and returns warnings or raises InputError.
May import: solon and the run file.
"""
