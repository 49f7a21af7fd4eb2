"""The ensemble of the train stage: its members are kept one by one, and end in one bundle.

A member that has been trained is kept beside the checkpoints (`Checkpoints.trained`), as a folder
with weights.safetensors, history.csv and a manifest. So a run that was killed does not train it
again.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from common.artifact import Artifact, write_manifest
from common.bundle_layout import HISTORY, MODEL, WEIGHTS, weights_name
from common.config.params import Params
from common.files import DataError, replaced
from common.layout import FEATURES
from common.logs import get_logger
from training.distributed.sharding.placement_report import PLACEMENT_FILE
from training.inference.bundle import Weights, complete_bundle, save_weights
from training.loop.checkpoint import Checkpoints
from training.loop.training_curves import join_histories

log = get_logger("train")


def save_member(directory: Path, weights: Weights) -> None:
    """Write the weights of a member and the manifest of its folder, which has its other files.

    Raises:
        ConfigError: A weight is NaN or infinite.
    """
    save_weights(directory / WEIGHTS, weights)
    write_manifest(directory, {})


def is_trained(member: Checkpoints) -> bool:
    """Return whether a member has been trained already. Every byte of it is checked.

    A damaged one is removed with a warning; training it again gives the same bytes.
    """
    if not os.path.lexists(member.trained):
        return False
    try:
        trained = Artifact.open(member.trained)
        trained.paths([WEIGHTS, HISTORY, *trained.files])
    except DataError:
        log.warning(f"{member.trained} is damaged; the model is trained again")
        member.remove()
        return False
    return True


def write_ensemble(
    members: Sequence[Checkpoints], params: Params, root: Path, operators: dict[str, str]
) -> None:
    """Write the bundle root/artifacts/model of members that have been trained.

    Args:
        members: The checkpoints of the members, in order.
        params: The parameters of params.yaml.
        root: The project folder.
        operators: The implementations that trained the members.
    """
    features = Artifact.open(root / FEATURES, is_checked=True)
    trained = [Artifact.open(member.trained, is_checked=True) for member in members]
    with replaced(root / MODEL) as scratch:
        scratch.mkdir()
        for number, member in enumerate(trained):
            _link_or_copy(member.path(WEIGHTS), scratch / weights_name(number))
        join_histories(scratch / HISTORY, [member.path(HISTORY) for member in trained])
        if PLACEMENT_FILE in trained[0].files:  # the same for all members
            shutil.copyfile(trained[0].path(PLACEMENT_FILE), scratch / PLACEMENT_FILE)
        complete_bundle(scratch, features, params, root, operators, len(members))


def _link_or_copy(source: Path, target: Path) -> None:
    """Make a file with the contents of another; no bytes are copied on one file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)
