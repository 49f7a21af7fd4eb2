"""Served traffic: the request log joined with labels, and compared with the training rows."""
