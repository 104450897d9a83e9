"""From captured tensors to the store: what is stored, where, and by whom. `store` and `chunks` need no torch.

In: labelled projections. Out: arrays in a trace whose steps become visible one by one and only whole.
"""
