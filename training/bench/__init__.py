"""The command `clickmill bench`: locality of the ids, cache hit rates and step times."""
