"""The judges: from questions through an engine or an endpoint to verdicts, with batching, calibration and provenance,
up to the judge that a run's settings describe. Start with `assembly`, and with `engine_judge` for how one verdict is
made."""
