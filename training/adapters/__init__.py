"""Changes to libraries, each in a file of its own with its reason."""
