"""Online scores: a serving bundle, the runtime that computes its scores, and the HTTP server.

Nothing here imports torch. `training/export/` makes serving bundles; `clickmill serve` serves them.
"""
