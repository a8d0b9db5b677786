"""The command line: the composition root. A command imports the layer it drives, and only when it runs."""
