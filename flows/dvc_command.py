"""`dvc`, as this project runs it: python -m flows.dvc_command COMMAND ...

One thing of DVC's is left out. Before a stage runs, DVC turns every persistent output that is a link into its cache into a copy, lest the
stage write through the link. Here no stage does, each output is built beside its place and renamed over it; and of a log that grows by a
day the copies would be all days before, three times over, and DVC would then have to hash them again.
"""

import sys

from dvc.cli import main
from dvc.output import Output


def leave_links() -> None:
    def unprotect(self: Output) -> None:
        """Nothing."""

    Output.unprotect = unprotect  # type: ignore[method-assign]


if __name__ == "__main__":
    leave_links()
    sys.exit(main(sys.argv[1:]))  # type: ignore[no-untyped-call]
