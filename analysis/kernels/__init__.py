"""Both softmaxes of one site in one step: in compiled code, in NumPy, or with torch on a device.

In: `Factors` or `Scores` (`values`) and weights of queries and keys. Out: the R2G and G2R marginals
(`softmax_marginals`), shares of keys (`key_shares`), or sums of whole rows (`summed_softmax_over_keys`); and `resize`,
which lays maps on another grid. Knows nothing of traces.
"""
