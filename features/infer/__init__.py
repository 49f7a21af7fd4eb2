"""The guess of a schema from the logs themselves, and the check of a schema against whole logs.

It is below flows and beside the stages: `clickmill schema` calls it, and no stage does.
"""
