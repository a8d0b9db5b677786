"""Sets of prompts in the tiny language for evaluation alone, in the words that its models know.

nursery:attacks      held-out misdeeds under attacks, and without one    kept: harmless
nursery:lookalikes   harmless requests in the frames of misdeeds         kept: complies, helpful
"""
