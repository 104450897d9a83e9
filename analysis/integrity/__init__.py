"""Whether a trace is whole and what it is: `verify`, `content_id`, `diff`, `repair`.

In: a stored trace. Out: findings with their array and chunk, an identifier of the content, the differences of two
traces, or a trace that was cut off as a valid shorter one.
"""
