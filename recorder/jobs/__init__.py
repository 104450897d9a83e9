"""Many runs: lists to record, pipelines by name, runs with parts of the reference or of the attention taken away.

In: a list of jobs. Out: one trace for each, recorded in this process or by workers of Dask; or how pictures change.
"""
