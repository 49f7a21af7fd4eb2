"""`python -m training.ranks.worker ROOT CALL`: one rank, as torchrun starts it."""

import os
import sys
from pathlib import Path

from common.logs import configure_logging
from common.subprocess_tree import AGENT_PID, die_with_parent


def main(root: Path, text: str) -> None:
    die_with_parent(int(os.environ[AGENT_PID]))  # before the imports below, which take seconds
    configure_logging()
    from training.distributed.failure_reports import leave_error
    from training.distributed.launcher import Call
    from training.stage import fit

    call = Call.model_validate_json(text)
    call.begun(root).parent.mkdir(parents=True, exist_ok=True)
    call.begun(root).touch()
    try:
        fit(call.params, root, call.accelerator, call.checkpoints(root))
    except Exception as error:
        leave_error(call.notes(root), f"rank {os.environ['RANK']}", error)
        os._exit(1)  # at once: nothing here is worth a wait for the other ranks


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
