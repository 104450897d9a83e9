"""What a trace is to its reader: `open_trace`, selections by label, and its arrays as lazy labelled xarray objects.

In: a `StoredTrace`. Out: a `Trace` (or many, `open_traces`), and for the rooms above the values of a (step, layer)
(`source`).
"""
