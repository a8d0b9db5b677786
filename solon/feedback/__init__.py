"""AI feedback: from a constitution and a judge to a label that may train.

Start with `interfaces`, what an engine is asked and what a judge answers; then `labeler`, which turns verdicts into
labels and rewards, and `worker`, which an actor hosts. The order of the inner rooms is in docs/architecture.md.
May know: constitution, engines, pipeline, runs, ledger, files.
"""
