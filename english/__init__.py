"""A small real English model from a registry package: evidence beyond the toy language."""
