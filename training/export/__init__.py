"""The export of a bundle: a file that computes its scores without this repository's code."""
