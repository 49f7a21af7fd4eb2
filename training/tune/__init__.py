"""The search for a better or cheaper model: trials with other parameters.

A study is a function of tune.yaml, params.yaml, the features and the code. How many workers run its
trials, and whether they were killed in between, does not change it (docs/adr has the reasons).
"""
