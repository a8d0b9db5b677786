"""AI feedback: from a constitution and a judge to a label that may train.

Start with `interfaces`, the questions to an engine and the verdicts of a judge; then `labeler`, which turns verdicts
into labels and rewards, and `worker`, which an actor hosts. The order of the inner rooms is in docs/architecture.md.
May import: constitution, engines, pipeline, runs, ledger, files.
"""
