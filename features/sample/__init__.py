"""The sample log generator: from a seed, a log like Criteo's whose best possible metrics are known.

`values` draws the columns, `signal` computes the click probabilities, `generate` writes the log,
and `optimum` computes its best possible metrics.
"""
