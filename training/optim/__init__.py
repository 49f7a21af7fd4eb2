"""The optimizers: torch.optim's for the dense layers, sparse ones for the embedding tables.

A training step runs both, after gradient clipping if `train.max_grad_norm` asks for it.
"""
