"""Monitors labels while a policy learns from them: audits by a second judge, canaries, symptoms, drift, and when to
stop. Start with `watch`, which decides; `observer` connects it to a run."""
