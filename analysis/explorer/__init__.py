"""Pages to look at: the interactive report of a trace (`write_report`), and the page of a comparison.

In: a `Trace` or a `Comparison`. Out: one HTML file that needs neither a server nor a network.
"""
