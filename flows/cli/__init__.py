"""The command line `clickmill`."""
