"""A file per format of log. Each has two functions: read, a log's rows piece by piece, and has_label."""
