"""Many recordings: lists of runs, pipelines loaded by name, and runs with parts of the reference hidden.

In: a list of jobs. Out: a trace for each, none lost and none recorded twice.
"""
