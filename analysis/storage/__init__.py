"""Where a trace lies: opening a store anywhere, and reading its bytes safely.

In: a path, a zip file, an address or a Zarr store. Out: a `StoredTrace` (`open_store`), whose arrays name the chunk
that cannot be read. Every size and name that a store claims is held to the `Limits` before it is believed.
"""
