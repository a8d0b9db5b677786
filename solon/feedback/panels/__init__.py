"""Judges made of judges: a cascade, a jury, and a cheap judge about everything with the real one about some. They know
the border `Judge` alone and none of the judges behind it. Start with `cascade`."""
