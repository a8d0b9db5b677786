"""Judges as services: HTTP in front of the same judge classes, caches, calibration and records as training.

    request ──▶ key ──▶ admission ──▶ labeler ──▶ judge ──▶ verdicts ──▶ records, reply

`service` labels, `http` speaks HTTP, `feedback` puts both on Ray Serve. Nothing here starts a cluster.
"""
