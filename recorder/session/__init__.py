"""`record`: one recording from its beginning to its end.

In: a pipeline and what of it to record. Out: a closed trace for every sample, and the user's run as it would have
been without it.
"""
