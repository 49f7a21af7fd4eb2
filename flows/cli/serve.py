"""The command `clickmill serve`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from common.config.loading import ConfigError

PRODUCTION = "production=artifacts/production"
ANONYMOUS = "--allow-anonymous"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A model: a bundle with its serving bundle beside it, a serving bundle, or a link "
            "to one of them, which is followed while the server runs. It may be repeated; the "
            "first model answers POST /score.",
            show_default=PRODUCTION,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: a free one.")] = 8000,
    workers: Annotated[
        int, typer.Option(min=1, max=1024, help="The number of processes, each with one thread.")
    ] = 1,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A model that scores the requests of model NAME after the answer, for the metrics "
            "alone. It may be repeated.",
        ),
    ] = None,
    canary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH:FRACTION",
            help="A model that answers a fraction of the requests of model NAME. It may be "
            "repeated.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="A file with the token that clients must send; only its owner may read it. "
            "Without it, the environment variable CLICKMILL_TOKEN, if it is set."
        ),
    ] = None,
    allow_anonymous: Annotated[
        bool,
        typer.Option(
            ANONYMOUS, help="Listen on an address that others can reach, without a token."
        ),
    ] = False,
    max_rows: Annotated[
        int, typer.Option(min=1, help="The largest number of rows of a request.")
    ] = 4096,
    max_body_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="The largest body of a request, in MiB.")
    ] = 8,
    max_requests: Annotated[
        int,
        typer.Option(
            min=1, help="The number of requests that a worker receives and scores at a time."
        ),
    ] = 2000,
    access_log: Annotated[bool, typer.Option(help="Print a line of JSON for each request.")] = True,
    log_requests: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder for a sample of the rows that were scored: ids and scores, for "
            "`clickmill served` and nightly runs.",
        ),
    ] = None,
    log_fraction: Annotated[
        float, typer.Option(help="The fraction of the requests that is logged.")
    ] = 0.01,
    log_key: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="The column, such as an impression id, by which a logged row will find its label.",
            show_default="the id of the request",
        ),
    ] = None,
) -> None:
    """Answer requests with scores over HTTP (docs/guides/serving.md)."""
    # Scores are computed in one thread. The workers read these when they import their libraries.
    os.environ.update({"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"})
    from serving.access_log import log_as_json
    from serving.options import (
        ServeOptions,
        check_challengers,
        log_requests_of,
        parse_canaries,
        parse_models,
        prepare_log_folder,
    )
    from serving.server import find_token, is_loopback
    from serving.server import serve as run_server

    token = find_token(token_file)
    if token is None and not allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: others can reach this address; give a token (--token-file), or allow"
            f" everybody to ask for scores ({ANONYMOUS})"
        )
    options = ServeOptions(
        models=parse_models(model or [PRODUCTION], "--model"),
        shadows=parse_models(shadow or [], "--shadow"),
        canaries=parse_canaries(canary or []),
        token=token,
        max_body_bytes=max_body_mib << 20,
        max_rows=max_rows,
        max_requests=max_requests,
        access_log=access_log,
        log_requests=log_requests_of(log_requests, log_fraction, log_key),
    )
    check_challengers(options)
    if log_requests is not None:
        prepare_log_folder(log_requests)
    log_as_json()
    run_server(options, host, port, workers)
