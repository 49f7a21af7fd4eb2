"""A change to Ray 2.60.0: a local cluster starts only the processes that its actors need.

`ray.init` always starts three more, and has no option to leave them out:

- The dashboard, even with `include_dashboard=False`, for the statistics of usage. Before it looks
  whether these are switched off, it asks the metadata services of three clouds which of them this
  machine belongs to (`UsageStatsHead.run` in ray/dashboard/modules).
- The monitor, which asks an autoscaler for more machines. It listens on a port with a fixed number.
- The log monitor, which prints the output of actors in the driver; with `log_to_driver=False` the
  driver does not read it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


@contextmanager
def needed_processes_only(parameter: Any, services: Any) -> Iterator[None]:
    """Start neither a dashboard nor a monitor nor a log monitor within this block.

    Args:
        parameter: The module `ray._private.parameter`.
        services: The module `ray._private.services`.
    """
    params, start_dashboard = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    services.start_api_server = lambda *_, **__: ("", None)
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, start_dashboard
