"""Logs to typed rows: blocks of whole lines, a file per format (read, a log's rows piece by piece, and has_label), and what is quarantined."""
