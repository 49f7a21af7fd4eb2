"""Readers of log files: one module per format splits a log into columns, in pieces of bounded size.

`read_log` chooses the reader of a format. `row_validation` decides, for all formats, which rows are
malformed.
"""
