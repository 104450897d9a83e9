"""Many recordings: lists of runs, pipelines loaded by name, and runs with parts of the reference hidden.

In: a list of jobs. Out: one trace for each, recorded in this process or by workers of Dask.
"""
