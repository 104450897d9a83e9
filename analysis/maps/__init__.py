"""Attribution maps: from both softmaxes to one picture for each level and direction.

In: a `Trace`. Out: lazy maps with dims (row, column) and the dim that their level keeps: `ulam`, `tlam`, `hlam`,
`llam`, `sram`, `token_map`; and the `marginals` below them, which `precompute` keeps in the store. `i2am` and `daam`
hold what those tools do otherwise.
"""
