"""The encoding of typed columns as model inputs.

`feature_state.py` has the table of ids and encodes rows; `id_map.py` looks ids up; `vocabulary.py`
and `vocabulary_growth.py` fit the vocabularies on the training rows, day by day, to the counts of
`table_counts.py`; `days.py` and `split.py` say which rows belong to which day and split.
"""
