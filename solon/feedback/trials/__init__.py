"""Judges put to the test: pairs of which the right answer is known, judges measured on them and compared, and judges
with known faults to test what watches them. Start with `gold`, then `measuring`."""
