"""The encoding of the rows of a request, for a server that answers one request after the other.

`encoder.py` is the entry. `batch_path.py` encodes rows by the readers and the feature state that
also encode logs.
"""
