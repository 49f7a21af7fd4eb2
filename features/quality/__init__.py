"""The checks of the data: how each day compares with the other days.

`data_profile.py` counts the rows of each day and makes data.json, `drift.py` measures how much two
sets of rows differ, and `gate.py` compares the figures with the thresholds of params.yaml.
"""
