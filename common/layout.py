"""Paths below the project's root that several rooms know.

bundle_layout.py has those of a bundle.
"""

from pathlib import Path

PARAMS = Path("params.yaml")
ARTIFACTS = Path("artifacts")  # the outputs of all stages
# The outputs of the stages collect, ingest, features and evaluate.
RAW = Path("artifacts/raw")
PARQUET = Path("artifacts/parquet")
FEATURES = Path("artifacts/features")
EVALUATION = Path("artifacts/evaluation")
# The serving bundle of the last model, the output of the stage export.
SERVING = Path("artifacts/serving")

# The clone of the repository in which a nightly run works. It is always the same path, because DVC
# knows by path which files it has hashed.
NIGHTLY_CLONE = Path("runs/night")

# The decision whether the model is promoted, with its reasons.
DECISION = Path("artifacts/decision.json")
