"""The encoding of the rows of a request, for a server that answers one request after the other.

`encoder.py` is the entry. `batch_path.py` encodes rows by the readers and the feature state that
also encode logs; `fast_path.py` encodes plain requests by NumPy: `value_readers.py` reads values,
`feature_makers.py` makes features of them, `id_lookup.py` and `key_table.py` look ids up.
"""
