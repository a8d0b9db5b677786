"""What is shown to people in a browser: figures and the pages that hold them.

Start with `figures`. May know: errors, files, feedback.
"""
