"""Embedding tables that are distributed over the ranks, by TorchRec and FBGEMM.

`planner` decides which rank has which rows, `sharded_tables` implements `Tables` with them, and
`strategy` gives both to Lightning. `row_permutation`, `placement_report` and `table_checkpoint`
need no TorchRec: a run of one device uses them too.
"""
