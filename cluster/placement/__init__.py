"""Decides whether the actors of a run fit: their demands against the cluster's present and possible resources.

Start with `placement`; `supply` reads the cluster, `node_types` what its autoscaler may add, `waiting` reports the
actors that a starting run waits for, `memory` estimates what a device must hold.
May import: solon, learners, the run file and preflight.
"""
