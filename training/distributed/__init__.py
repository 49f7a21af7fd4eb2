"""Devices, exchanges between ranks, and sharded tables: several ranks after their start.

`device.py` chooses CPU or GPU. `collectives.py` has the exchanges between ranks beside DDP's.
`sharding/` distributes the embedding tables over the ranks.
"""
