"""`python -m training.ranks.worker ROOT CALL`: one rank, as torchrun starts it."""

import os
import sys
from pathlib import Path

from training.checkpoint import Checkpoints
from training.launch import die_with_parent
from training.ranks.nodes import Call
from training.ranks.notes import leave_error
from training.train import fit


def main(root: Path, call: Call) -> None:
    die_with_parent()
    try:
        fit(call.params, root, call.accelerator, Checkpoints(root / call.checkpoints))
    except Exception as error:
        leave_error(call.notes(root), f"rank {os.environ['RANK']}", error)
        os._exit(1)  # at once: nothing here is worth a wait for the other ranks


if __name__ == "__main__":
    main(Path(sys.argv[1]), Call.model_validate_json(sys.argv[2]))
