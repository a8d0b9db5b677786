"""Where the actors of a run fit: their demands against what the cluster has or can become.

Start with `placement`; `supply` reads the cluster, `node_types` what its autoscaler may add, `waiting` says what a
starting run waits for, `memory` estimates what a device must hold.
May know: solon, learners, the run file and preflight.
"""
