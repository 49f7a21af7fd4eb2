"""The encoding of typed columns as model inputs, the features stage.

`stage.py` runs the stage. `feature_state.py` has the table of ids and encodes rows;
`vocabulary.py` and `vocabulary_growth.py` fit the vocabularies on the training rows, day by day;
`writer.py` writes the encoded rows of each day.
"""
