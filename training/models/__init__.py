"""The DLRM and its parts, as single-device maths in PyTorch.

`factory.build_model` builds a `dlrm.DLRM` from the `model` section of params.yaml. The parts of a
DLRM are its embeddings (`embeddings` and the files that implement it), an interaction
(`interaction`, `cross`) and two MLPs (`mlp`). Nothing here knows about devices, ranks or Lightning:
where the rows of the embedding tables are sharded, training/distributed/sharding provides another
`Tables`.
"""
