"""The judges themselves: from questions through an engine or an endpoint to verdicts, with batching, calibration and
provenance, up to the judge that the settings of a run stand for. Start with `hosted`, and with `engine_judge` for how
one verdict is made."""
