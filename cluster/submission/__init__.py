"""Runs as jobs of a cluster elsewhere: `solon submit`, `solon jobs`. Start at `submit.py`.

Everything is checked here before anything is uploaded (`connection`, `package`, `request`); `follow` shows the log of a
job. This room knows run files and alignment files; it talks to the cluster's job server alone and joins no cluster.
"""
