"""The features stage: it writes the training-ready dataset, artifacts/features.

`stage.py` fits or grows the feature state and runs the stage; `writer.py` writes the encoded rows
of each day.
"""
