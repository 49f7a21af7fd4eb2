"""Everything that reaches past the public interface of DVC or Prefect, one file for each.

Each function says what it changes, why, and which upstream issue would make it unnecessary.
tests/unit/flows/adapters fails when upstream changes what we rely on.
"""
