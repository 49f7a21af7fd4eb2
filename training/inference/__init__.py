"""Inference: the bundle, and the scores of rows with a bundle alone."""
