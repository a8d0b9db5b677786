"""GGUF files as Hugging Face directories. Start at `importing.py`; it knows torch and Transformers, and `solon/` alone.

report = import_gguf(Path("model.gguf"), Path("models/policy"))
"""
