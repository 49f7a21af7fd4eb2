"""The stage `ingest`: raw log files become typed Parquet shards, and malformed rows are set aside.

`stage` plans and assembles, `shard` converts one log file, `readers` read the formats of logs, and
`object_store` exchanges logs and shards with other machines.
"""
