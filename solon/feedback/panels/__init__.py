"""Judges made of judges: a cascade, a jury, and a cheap judge for all items with the real judge for some. They use only
the interface `Judge`. Start with `cascade`."""
