"""A change to Ray: a local cluster starts without the process of the dashboard.

With `include_dashboard=False`, Ray 2.60.0 starts this process all the same, for the statistics of
usage. Before it looks whether these are switched off, it asks the metadata services of three clouds
which of them this machine belongs to (`UsageStatsHead.run` in ray/dashboard/modules). Nothing else
of a cluster needs the process. Ray has no option to leave it out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_dashboard(services: Any) -> Iterator[None]:
    """Start no dashboard within this block.

    Args:
        services: The module `ray._private.services`.
    """
    start = services.start_api_server
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        services.start_api_server = start
