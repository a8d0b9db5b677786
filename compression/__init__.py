"""Compressed models: a judge in fewer bits that answers as before (`quantise.py`), and models read from GGUF files
(`gguf/`)."""
