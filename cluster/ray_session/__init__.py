"""Ray itself: our own cluster or an existing one, its folders, processes and failures.

Start with `session`, the only caller of `ray.init`; `own_cluster` starts a head, `session_folder` cleans up after it,
`watch` notices when Ray's processes die, `worker_path` decides what workers import.
May import: solon.host, errors and signals.
"""
