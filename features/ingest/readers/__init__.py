"""Logs to typed rows: blocks of whole lines, and a file per format, with read, a log's rows piece by piece, and has_label."""
