"""The training loop: batches, the LightningModule, its callbacks and checkpoints."""
