"""Evaluation of a model on rows it has not seen: scores, exact metrics, plots and the report."""
