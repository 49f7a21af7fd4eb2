"""What all rooms use: parameter models, files and hashes, log lines, progress, child processes.

Nothing here knows about features, models or flows.
"""
