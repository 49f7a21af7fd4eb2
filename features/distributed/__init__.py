"""The features stage on the workers of a cluster: counting, growth of vocabularies, encoding.

A job is a value with a method `run`, which does its work on any machine; `count_days.py`,
`merge_counts.py` and `encode_days.py` define one kind each. `cluster.py` makes the jobs of a run
and puts their results together. `exchange.py` is how the machines give each other files.
"""
