"""A model and rows it has not seen, to figures and a page: scoring, exact metrics, plots, the report."""
