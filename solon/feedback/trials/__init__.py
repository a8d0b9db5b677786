"""Tests of judges: pairs with known answers, judges measured on them and compared, and judges with known faults to test
the monitors. Start with `gold`, then `measuring`."""
