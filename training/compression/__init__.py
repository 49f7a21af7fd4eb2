"""Compression: a smaller bundle from a trained one, without training again."""
