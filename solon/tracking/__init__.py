"""Sends the metrics of a run to TensorBoard, Weights & Biases or MLflow, from the run's files alone.

`solon track RUN --tensorboard DIR`, or, in an environment that has another tracker's packages, the same with
`python -P -m solon.tracking`. Uses the standard library and the tracker.
"""
