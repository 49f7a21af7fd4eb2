"""The stage `export`: it makes artifacts/serving from artifacts/model.

`clickmill export` does the same for any bundle and folder (training/export/export_model.py).
"""

from pathlib import Path

from common.bundle_layout import MODEL, version_of
from common.config.params import Export
from common.files import replaced
from common.layout import SERVING
from common.logs import get_logger
from serving.serving_bundle import NOT_EXPORTED

log = get_logger("export")


def export_stage(params: Export, root: Path) -> None:
    """Export artifacts/model to artifacts/serving, or write there why no serving bundle is made.

    There is none if `export.runtime` is null or the model cannot be exported. The other outputs of
    the run can be used then.

    Raises:
        DataError: The bundle is damaged or missing, or the features are those of another model.
        ExportError: The exported model has other scores, or too large a logloss.
    """
    if params.runtime is None:
        reason = (
            f"model {version_of(root / MODEL)}: it was not exported, because export.runtime is null"
            " in params.yaml; export it (clickmill export --runtime onnx), or set export.runtime to"
            " onnx and run the stage export"
        )
        log.info("export.runtime is null in params.yaml; no serving bundle is made")
        _write_reason(root, reason)
        return
    # It imports PyTorch's exporter, which takes seconds.
    from training.export.export_model import NotExportableError, export

    try:
        export(root / MODEL, root / SERVING, params, root)
    except NotExportableError as error:
        log.warning(f"{error}; no serving bundle is made")
        _write_reason(root, str(error))


def _write_reason(root: Path, reason: str) -> None:
    with replaced(root / SERVING) as scratch:
        scratch.mkdir()
        (scratch / NOT_EXPORTED).write_text(f"{reason}\n")
