"""A project with a bundle whose server has logged the newest rows of the log."""

from pathlib import Path

import numpy as np

from common.layout import FEATURES
from features.encode.feature_state import FeatureState
from features.online.encoder import RequestEncoder
from serving.request_log import LoggedModel, RequestLog, key_text
from tests.factories.models import log_lines, make_bundle, make_project
from tests.factories.support import CRITEO

KEY = CRITEO.dense[0]  # each row has a number of its own there
WRONG = CRITEO.dense[1]  # of which the first row was served with another value
NUM_SERVED = 120
NAME = "<b>shop</b>"


def write_served_project(root: Path) -> str:
    """Write a project, the request log root/requests and its rows with labels, root/day.tsv.

    Returns:
        The version of the model.
    """
    lines = []
    for k, line in enumerate(log_lines(1400, 1)):
        label, _, *rest = line.split("\t")
        lines.append("\t".join([label, str(k), *rest]))
    version = make_bundle(root, make_project(root, lines))
    newest = lines[-NUM_SERVED:]
    (root / "day.tsv").write_text("\n".join(newest) + "\n")
    state = FeatureState.load(root / FEATURES / "state")
    model, encoder = LoggedModel.of(NAME, version, state.schema), RequestEncoder(state, "fill")
    log = RequestLog(root / "requests", 1.0)
    for k, line in enumerate(newest):
        _, *fields = line.split("\t")
        key = key_text(fields[0])
        if not k:
            fields[1] = "123456"
        rows = encoder.encode_lines("\t".join(fields).encode())
        log.add(model, f"r{k}", rows, np.array([0.4], np.float32), keys=[key])
    log.close()
    return version
