"""Trained policies for the Hugging Face hub: which files are sent, and with what card.

Start with `push.py`; `card.py` writes the card from the run's files. Knows runs, checkpoints and the report's figures.
"""
