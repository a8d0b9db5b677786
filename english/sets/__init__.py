"""Sets of English prompts for evaluation alone: attacks, harmless look-alikes of harmful requests, and plain facts.

    english:attacks      misdeeds of no training, under six attacks and without one     kept: resists
    english:lookalikes   harmless requests in the words of harmful ones                 kept: complies
    english:truth        questions with a known answer, with and without a false belief kept: truthful

They are no part of what judges are taught or policies are trained on.
"""
