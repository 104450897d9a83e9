"""What the tokens of an attention call are.

In: a pipeline, its profile, its call that is under way, and the captured tokens. Out: labels of queries and keys:
context, kind, grid, text, branch of guidance; a guess is told as one.
"""
