"""Many traces: what each contributes, and what they say together.

In: sources of traces and `Settings`. Out: `aggregate` (mean, variance, statistics of heads, scores) and `compare`
(paired differences), on threads or on a Dask cluster, resumed where they were stopped.
"""
