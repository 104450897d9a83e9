"""Seeing queries and keys of attention calls without changing them.

In: a denoiser and what of it is to be recorded. Out: `Projections` of every call (queries, keys, scale, mask,
log-sum-exp), taken by hooks on the projections or by interception of the attention call.
"""
