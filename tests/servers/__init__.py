"""The parameter servers on Ray. `make test-servers` prepares an environment that has it."""
