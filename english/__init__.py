"""A small real English model, from a package that a registry carries: evidence that does not rest on a toy language."""
