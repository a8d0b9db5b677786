"""`solon check`: everything about a run that can be checked before an engine starts.

Start with `checks`, which runs them all. Each other module checks one thing and returns warnings or raises InputError.
May know: solon and the run file.
"""
