"""Prefect's temporary server as a program: `python -m flows.adapters.temporary_server FD PARENT`.

Prefect starts it as `uvicorn --factory prefect.server.api.server:create_app`, which stays for ever
if its parent is killed. This program asks the kernel first of all to end it with its parent.

Arguments: the descriptor of the listening socket, and the process id of the parent.
"""

import socket
import sys

from common.subprocess_tree import die_with_parent


def serve(listener: socket.socket) -> None:
    """Serve Prefect's API until SIGTERM."""
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error", lifespan="on"))
    server.run([listener])


if __name__ == "__main__":
    descriptor, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    serve(socket.socket(fileno=descriptor))
