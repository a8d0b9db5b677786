"""Output for a browser: figures and the pages with them.

Start with `figures`. May import: errors, files, feedback.
"""
