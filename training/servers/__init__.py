"""Parameter servers: tables in several processes, which workers read and change asynchronously."""
