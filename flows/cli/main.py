"""The command line. Nothing heavy is imported before a command needs it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from common.config.params import load_params
from flows.cli import nightly, schema, serve, served, stages, tune
from flows.cli.groups import MainGroup, make_app
from flows.cli.signals import exit_on_sigterm

ROOT = Path()

app = make_app(
    "Turn raw click logs into a trained, evaluated and versioned DLRM. "
    "Every value is read from params.yaml in the current directory.",
    MainGroup,
)
app.add_typer(schema.app, name="schema")
app.add_typer(stages.app, name="stage")
app.add_typer(nightly.app, name="nightly")
app.add_typer(tune.app, name="tune")


@app.command(epilog="Example: clickmill run")
def run() -> None:
    """Run every stage that is not up to date, as the flow train-dlrm, and show the metrics."""
    from flows.dvc_stages import up_to_date
    from flows.results import Results, show

    exit_on_sigterm()
    is_current = up_to_date(load_params(), ROOT)
    if not is_current:
        from flows.prefect_server import start_server

        wait_for_server = start_server()  # it starts while the flow is imported
        from flows.train_dlrm import train_dlrm

        wait_for_server()
        try:
            train_dlrm()
        except (KeyboardInterrupt, SystemExit):
            typer.echo(
                "clickmill: stopped; the next run begins with the stage that did not finish",
                err=True,
            )
            raise
    results = Results.read(ROOT)
    if is_current:
        show(results, f"Nothing changed since model {results.version}.")
    else:
        show(results, f"Model {results.version} is ready.")


@app.command(
    epilog="Example: clickmill predict --model artifacts/model --input new.tsv --output out.csv"
)
def predict(
    model: Annotated[
        Path,
        typer.Option(
            help="A bundle, such as artifacts/model, or a serving bundle: artifacts/serving."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="The file of click probabilities to write: .csv, .jsonl or .parquet; "
            "- is standard output."
        ),
    ],
    input: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            help="Raw rows, with or without the label: a file, a folder, a glob pattern, or - for "
            "standard input. It may be repeated.",
        ),
    ] = None,
    more_inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT", help="The same as --input.")
    ] = None,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="COLUMN",
            help="A column of the log to copy to the scores. It may be repeated.",
        ),
    ] = None,
    format: Annotated[
        Literal["csv", "jsonl", "parquet"] | None,
        typer.Option(help="The format of an output without an ending.", show_default="csv"),
    ] = None,
) -> None:
    """Score raw rows with a bundle or a serving bundle; no other file of the project is needed."""
    inputs = [*(input or []), *(more_inputs or [])]
    if not inputs:
        raise typer.BadParameter("name the raw rows: --input FILE", param_hint="--input")
    exit_on_sigterm()
    from training.inference.predict import predict as score_files

    score_files(model, inputs, output, ids=ids or [], output_format=format)


@app.command(
    epilog="Example: clickmill compress --model artifacts/model --output runs/small --bits 8"
)
def compress(
    model: Annotated[Path, typer.Option(help="A bundle, such as artifacts/model.")],
    output: Annotated[
        Path,
        typer.Option(help="The folder of the compressed bundle. DIR.html beside it is the report."),
    ],
    bits: Annotated[
        Literal["4", "8", "16", "32"],
        typer.Option(
            help="8: int8 tables and layers. 4: int4 tables and int8 layers. 16: bfloat16. "
            "32: the numbers stay as they are."
        ),
    ],
    rows: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="The share of the rows of embedding tables to leave out: rare ones."
        ),
    ] = 0,
    units: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="The share of the units of each hidden layer to remove."
        ),
    ] = 0,
) -> None:
    """Make a smaller bundle without training, and a report of what each step costs and saves."""
    exit_on_sigterm()
    from training.compression.compress_model import Steps
    from training.compression.stage import compress as run_compression
    from training.models.number_formats import BITS

    run_compression(model, output, Steps(BITS[bits], rows, units), ROOT)


@app.command(
    epilog="Example: clickmill export --model artifacts/model --output runs/models/today.serving"
)
def export(
    model: Annotated[Path, typer.Option(help="A bundle, such as artifacts/model.")],
    output: Annotated[Path, typer.Option(help="The folder of the serving bundle.")],
    runtime: Annotated[
        Literal["onnx", "aoti"] | None,
        typer.Option(
            help="What computes the scores: ONNX Runtime, or PyTorch's AOTInductor.",
            show_default="export.runtime of params.yaml",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also compare the quality, size and speed of all number formats: DIR.html.",
        ),
    ] = False,
) -> None:
    """Export a bundle for `clickmill serve`, and compare its scores with those of PyTorch."""
    exit_on_sigterm()
    params = load_params().export  # reports a mistake before torch is imported
    from training.export.export_model import export as run_export

    changes = {} if runtime is None else {"runtime": runtime}
    changed = params.model_copy(update=changes)
    run_export(model, output, changed, ROOT, with_report=compare)


@app.command(epilog="Example: clickmill sample --rows 20000 --output runs/sample.tsv")
def sample(
    rows: Annotated[int, typer.Option(min=1, help="The number of rows to write.")],
    output: Annotated[
        Path,
        typer.Option(
            help="The log to write; the best attainable metrics on it are written beside it. "
            "- is standard output, for the log alone."
        ),
    ],
    days: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The number of days that the log spans.",
            show_default="data.days of params.yaml",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="The seed of the rows.", show_default="sample.seed of params.yaml"
        ),
    ] = None,
) -> None:
    """Write a generated click log in the format of data.schema."""
    from flows.cli.sample import write_named_sample

    write_named_sample(load_params(), ROOT, output, rows, days, seed)


@app.command(epilog="Example: clickmill bench --ids random")
def bench(
    ids: Annotated[
        Literal["random", "trace"],
        typer.Option(help="random: uniform ids only; trace: also the log's own ids."),
    ] = "trace",
    rows: Annotated[
        int, typer.Option(min=1, help="The number of training rows to use, the first of the log.")
    ] = 100_000,
    preset: Annotated[
        str | None,
        typer.Option(help="Measure a published architecture on generated rows: mlperf-dcnv2."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows of a step of the preset, instead of its own.")
    ] = None,
    max_table_rows: Annotated[
        int | None,
        typer.Option(
            min=1, help="Larger tables of the preset are cut to this size, instead of its own."
        ),
    ] = None,
) -> None:
    """Measure the cache hit rates of embedding rows, and the time of a training step."""
    params = load_params()  # reports a mistake before torch is imported
    if preset is not None:
        from training.bench.preset import bench_preset

        bench_preset(preset, params.train, batch_size, max_table_rows)
        return
    from training.bench.run import bench as run_bench

    run_bench(params, ROOT, ids, rows)


@app.command(epilog="Example: clickmill params --schema > params.schema.json")
def params(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of params.yaml instead.")
    ] = False,
) -> None:
    """Print the values of params.yaml as they are used, with a preset replaced by its values."""
    import json

    from common.config.params import params_json_schema

    if schema:
        typer.echo(json.dumps(params_json_schema(), indent=2))
        return
    typer.echo(json.dumps(load_params().model_dump(mode="json", by_alias=True), indent=2))


@app.command(epilog="Example: clickmill doctor")
def doctor() -> None:
    """Check this machine and repository, and print a remedy for each problem."""
    from flows.doctor import examine, show

    findings = examine(ROOT)
    show(findings)
    raise typer.Exit(any(finding.status == "error" for finding in findings))


app.command(epilog="Example: clickmill serve --model production=artifacts/production --workers 2")(
    serve.serve
)
app.command(
    epilog="Example: clickmill served --requests /data/requests --log day_3.tsv --key impression"
)(served.served)
app.command(epilog="Example: clickmill adopt 12")(tune.adopt)
