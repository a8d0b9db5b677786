"""The command line: the composition root. Start with `main`, which lists the commands.

A command imports the layer it drives, and only when it runs, so that `solon --help` answers at once.
May import: everything.
"""
