"""Code that all rooms use: parameters, files and hashes, log lines, progress, processes.

Nothing here knows about features, models or flows.
"""

import os

# Arrow, which reads this when it is imported, allocates memory by the C library. Its own allocator
# takes huge pages, which the kernel has to clear: a quarter of the CPU time of a short ingest.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
