"""`clickmill doctor`: what this machine and this repository have, with remedies."""

import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table

from common import cpp
from common.config.loading import ConfigError
from common.masking import mask_passwords
from common.threads import cpu_quotas, thread_limit
from flows.dvc_stages import check_stages
from flows.git_commands import Git, GitError
from flows.nightly.repository import NightlyRepository

Status = Literal["ok", "note", "warning", "error"]
PACKAGES = ("polars", "pyarrow", "dvc", "prefect", "torch", "pytorch-lightning")
WRITABLE = (Path("artifacts"), Path("runs"), Path(".dvc/tmp"))
FREE_GIB = 2
SERVER_ANSWERS_WITHIN_S = 10.0
GIB = 1 << 30


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        status: `ok`; `note`: nothing is wrong, but something is slower or left out; `warning`:
            something fails when it is used; `error`: `clickmill run` fails.
        subject: What was examined.
        text: What was found.
        remedy: What to do about it; empty if there is nothing to do.
    """

    status: Status
    subject: str
    text: str
    remedy: str = ""


def examine(root: Path) -> list[Finding]:
    """Examine this machine and the repository at root. Nothing is changed."""
    cpp.log.disabled = True  # the findings on the CPU say the same
    try:
        return [
            *_versions(),
            *_cpu(root),
            *_accelerator(),
            *_params(root),
            *_places(root),
            *_git(root),
            *_dvc(root),
            *_server(),
        ]
    finally:
        cpp.log.disabled = False


def show(findings: list[Finding]) -> None:
    """Print the findings as a table, each remedy below its finding."""
    console = Console(highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row(finding.status, finding.subject, finding.text)
        if finding.remedy:
            table.add_row("", "", f"-> {finding.remedy}")
    console.print(table)
    counts = Counter(finding.status for finding in findings)
    console.print(
        f"\nErrors: {counts['error']}. Warnings: {counts['warning']}. Notes: {counts['note']}."
    )


def _versions() -> Iterator[Finding]:
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        try:
            yield Finding("ok", name, version(name))
        except PackageNotFoundError:
            needs = "no stage" if name not in ("torch", "pytorch-lightning") else "training"
            status: Status = "error" if needs == "no stage" else "warning"
            text = "not installed" + (
                ": `train` and `evaluate` fail" if needs == "training" else ""
            )
            yield Finding(status, name, text, "run `make setup`, or pip install 'clickmill[train]'")


def _cpu(root: Path) -> Iterator[Finding]:
    available, all_cpus = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    text = f"{available} of {all_cpus} CPUs available to this process"
    if quotas := cpu_quotas():
        text += f", {min(quotas):g} by the quota of its control group"
    if num_threads := os.environ.get("OMP_NUM_THREADS"):
        text += f", OMP_NUM_THREADS={num_threads}"
    threads = thread_limit()
    yield Finding("ok", "threads", f"{text}: {threads} thread{'s' if threads > 1 else ''}")
    compiler = os.environ.get("CXX", "c++")
    yield Finding("ok", "C++ compiler", shutil.which(compiler) or repr(compiler))
    from features.ingest.readers import compiled

    if compiled.library():
        yield Finding("ok", "text parsing", "compiled")
    else:
        yield Finding("note", "text parsing", "NumPy, which is slower", cpp.reason_of("text") or "")
    if find_spec("torch") is None:
        return
    import torch

    from common.config.loading import ConfigError
    from common.config.params import load_params
    from training.kernels import choice
    from training.kernels.advice import what_would_be_faster

    capability = torch.backends.cpu.get_cpu_capability()
    has_bf16 = choice.bf16_supported()
    bf16 = "bf16 instructions" if has_bf16 else "no bf16 instructions: train.precision fp32"
    yield Finding("ok", "CPU features", f"{capability}, {bf16}")
    try:
        train = load_params(root / "params.yaml").train
    except ConfigError:
        return  # _params reports it
    implementations = choice.describe(train.rows_per_rank, train.precision)
    advice = what_would_be_faster(implementations)
    for name, implementation in implementations.items():
        yield Finding("ok", name, implementation)
    if advice:
        yield Finding("note", "speed", advice, cpp.reason_of("kernels") or "")


def _accelerator() -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
        yield Finding("ok", "GPU", ", ".join(names))
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "warning",
            "GPU",
            f"nvidia-smi is installed, but torch {torch.__version__} cannot use a GPU",
            "check the driver (nvidia-smi), then run `make setup` again for torch's CUDA build",
        )
    else:
        yield Finding("ok", "GPU", "none: training uses the CPU")


def _params(root: Path) -> Iterator[Finding]:
    from common.config.loading import ConfigError
    from common.files import DataError
    from features.schema.check_params import load_checked_params

    try:
        params = load_checked_params(root)
    except (ConfigError, DataError) as error:
        yield Finding("error", "params.yaml", str(error), "correct params.yaml")
        return
    yield Finding("ok", "params.yaml", "valid")
    source = params.data.source
    if source == "sample":
        yield Finding("ok", "data.source", f"the generated sample, {params.sample.num_rows:,} rows")
        return
    from features.collect.stage import find_source

    try:
        logs = find_source(params.data, root)
    except (ConfigError, ConnectionError, DataError) as error:
        yield Finding("error", "data.source", str(error), "correct data.source in params.yaml")
        return
    num_files = len(logs.discovery.logs)
    text = f"{num_files:,} file(s), {logs.num_bytes / GIB:,.2f} GiB"
    if not_taken := logs.discovery.describe_not_taken():
        text += f"; not taken: {not_taken}"
    yield Finding("ok", "data.source", text)


def _places(root: Path) -> Iterator[Finding]:
    for place in (root / path for path in WRITABLE):
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
            yield Finding("ok", "writable", str(place))
        except OSError as error:
            yield Finding(
                "error", "writable", f"{place}: {error.strerror}", f"chown or chmod {existing}"
            )
    free = shutil.disk_usage(root).free
    text = f"{free / GIB:,.1f} GiB free in {root.resolve()}"
    if free < FREE_GIB * GIB:
        yield Finding("warning", "disk", text, "free space: a full disk stops a run")
    else:
        yield Finding("ok", "disk", text)


def _git(root: Path) -> Iterator[Finding]:
    git = Git(root)
    try:
        git.prefix()
    except GitError as error:
        yield _finding_of(error, "error", "git")
        return
    name, email = (git.setting_of_user(f"user.{key}") for key in ("name", "email"))
    if name and email:
        yield Finding("ok", "git identity", f"{name} <{email}>")
    else:
        yield Finding(
            "note",
            "git identity",
            "none: nightly runs are committed under a name of their own",
            "git config user.name NAME; git config user.email ADDRESS",
        )
    if "true" in (git.setting_of_user(f"{kind}.gpgSign") for kind in ("commit", "tag")):
        yield Finding(
            "ok",
            "git signing",
            "commits or tags are signed, but not those of nightly runs: nobody is there to sign",
        )
    try:
        NightlyRepository(root).check_committed()
    except (ConfigError, GitError) as error:
        yield _finding_of(error, "warning", "nightly runs")
    else:
        yield Finding("ok", "nightly runs", "what they need is committed")


def _dvc(root: Path) -> Iterator[Finding]:
    try:
        check_stages(root)
    except (ConfigError, GitError) as error:
        yield _finding_of(error, "error", "DVC")
    else:
        yield Finding("ok", "DVC", "dvc.yaml has every stage, and the cache can be written")


def _finding_of(error: Exception, status: Status, subject: str) -> Finding:
    """Make a finding of an error whose message is the fault, a semicolon and the remedy."""
    fault, _, remedy = str(error).partition("; ")
    return Finding(status, subject, fault, remedy or "correct what the message names")


def _server() -> Iterator[Finding]:
    from prefect.settings import get_current_settings

    from common.config.loading import ConfigError
    from flows.prefect_login import listening_sockets, login_file, stored_login
    from flows.prefect_server import answers_without_login, find_fault

    try:
        if stored_login():
            yield Finding("ok", "server's login", f"{login_file()}, which only its owner can read")
    except ConfigError as error:
        text, _, remedy = str(error).partition("; ")
        yield Finding("error", "server's login", text, remedy)
    url, port = get_current_settings().api.url, get_current_settings().server.api.port
    if url is None:
        yield Finding(
            "ok", "Prefect server", "none configured: `clickmill run` starts a temporary one"
        )
        if listening_sockets(port):
            yield Finding(
                "warning",
                "Prefect server",
                f"what listens on port {port} does not know the login of this user's server, "
                "so it is not used",
                "stop it if it is a server without a login; then `prefect server start` in this "
                "folder; for a server of another user set PREFECT_API_URL and "
                "PREFECT_API_AUTH_STRING",
            )
        return
    if fault := find_fault(url, SERVER_ANSWERS_WITHIN_S):
        yield Finding("error", "Prefect server", fault.text, fault.remedy)
        return
    yield Finding("ok", "Prefect server", mask_passwords(url))
    if answers_without_login(url, SERVER_ANSWERS_WITHIN_S):
        yield Finding(
            "warning",
            "Prefect server",
            "it asks for no login, so every web page that is open on its machine can start runs",
            "stop it and run `prefect server start` in this folder, or set "
            "PREFECT_SERVER_API_AUTH_STRING where it starts",
        )
