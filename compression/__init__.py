"""Compresses models that judge and answer as before."""
