"""Training on several ranks: processes of one machine, or of several machines (nodes).

`launcher` starts `torchrun_agent` on each node, which starts a `worker` per rank. `failure_reports`
are the files by which ranks and nodes say why they failed. `collectives` are the exchanges between
ranks beside DDP's. `device` chooses CPU or GPU. `sharding` distributes the embedding tables over
the ranks.
"""
