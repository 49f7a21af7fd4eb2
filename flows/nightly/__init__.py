"""The nightly run: new log data in, a trained and compared model out, promoted if it is not worse.

Begin with flow.py, which reads top to bottom, and repository.py, which has everything that runs
leave in the repository.
"""
