"""Code that all rooms use: parameters, files and hashes, log lines, progress, processes.

Nothing here knows about features, models or flows.
"""
