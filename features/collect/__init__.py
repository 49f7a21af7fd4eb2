"""The stage `collect`: the log files, or the built-in sample, are brought into artifacts/raw."""
