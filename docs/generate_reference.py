"""The hook of mkdocs.yml: pages that are generated from code, and pages from outside of docs/.

- reference/cli.md is generated from the Typer application `flows.cli.main:app`.
- reference/params.md is generated from the pydantic models of `common.config.params.Params`.
- benchmarks/, CONTRIBUTING.md and CHANGELOG.md are pages of the site as well.
- Links between files of the repository become links between pages of the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from ruamel.yaml import YAML

from common.config.params import Params
from flows.cli.main import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")

# Files outside of docs/ that are pages: path in the repository -> path in the site.
OUTSIDE = {
    "benchmarks/README.md": "benchmarks/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}
SOURCE_OF = {page: source for source, page in OUTSIDE.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add every decision and every benchmark result to the navigation."""
    assert config.nav is not None
    sections = {
        name: pages
        for entry in config.nav
        if isinstance(entry, dict)
        for name, pages in entry.items()
    }
    sections["Decisions"] += [f"adr/{path.name}" for path in sorted((DOCS / "adr").glob("0*.md"))]
    sections["Benchmarks"] += [page for page in SOURCE_OF if page.startswith("benchmarks/results/")]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and the pages from outside of docs/."""
    pages = {"reference/cli.md": cli_page(), "reference/params.md": params_page()}
    pages |= {page: (ROOT / source).read_text("utf-8") for source, page in OUTSIDE.items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links between files of the repository by links between pages of the site."""
    site_path = page.file.src_uri
    source = SOURCE_OF.get(site_path, f"docs/{site_path}")
    return LINK.sub(lambda match: _site_link(match[1], source, site_path), markdown)


def _site_link(link: str, source: str, site_path: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    page = OUTSIDE.get(target, target.removeprefix("docs/"))
    return posixpath.relpath(page, posixpath.dirname(site_path) or ".")


# --- reference/cli.md ------------------------------------------------------------------------


def cli_page() -> str:
    """Return the page of the command line: every command with its arguments and an example."""
    intro = (
        "# Command line\n\n"
        "This page lists every command. It is generated from the code, "
        "and `clickmill COMMAND --help` prints the same text.\n\n"
        "```console\n$ clickmill --help\n```\n"
    )
    return "\n".join([intro, *_commands("clickmill", typer.main.get_command(app), level=1)])


def _commands(path: str, command: Any, level: int) -> list[str]:
    """Return the text of a command, or of a group and the commands in it."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        return _command(path, command, level)
    lines = []
    if level > 1:
        lines = [f"{'#' * level} {path}", "", command.help or "", ""]
    plain_first = sorted(subcommands.items(), key=lambda item: hasattr(item[1], "commands"))
    for name, subcommand in plain_first:
        if not subcommand.hidden:
            lines += _commands(f"{path} {name}", subcommand, level + 1)
    return lines


def _command(path: str, command: Any, level: int) -> list[str]:
    lines = [f"{'#' * level} {path}", "", command.help or "", ""]
    if command.epilog:
        example = command.epilog.removeprefix("Example: ")
        lines += ["```console", f"$ {example}", "```", ""]
    parameters = [parameter for parameter in command.params if "--help" not in parameter.opts]
    if parameters:
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        lines += [_parameter(parameter) for parameter in parameters]
        lines.append("")
    return lines


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = [parameter.metavar or parameter.name.upper()]
    elif parameter.is_flag:
        names = parameter.opts
    else:
        names = [f"{name} {_value(parameter)}" for name in parameter.opts]
    cells = (", ".join(f"`{name}`" for name in names), _default(parameter), parameter.help or "")
    return _row(cells)


def _value(parameter: Any) -> str:
    """Return a placeholder for the value of an option, or its choices."""
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    return str(parameter.name).upper()


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return str(parameter.show_default)
    if parameter.default is None or parameter.default is False:
        return ""
    return f"`{parameter.default}`"


def _row(cells: tuple[str, ...]) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"


# --- reference/params.md ---------------------------------------------------------------------


def params_page() -> str:
    """Return the page of params.yaml: type, default, range and meaning of every key."""
    schema = Params.model_json_schema()
    defaults = YAML().load((ROOT / "params.yaml").read_text("utf-8"))
    lines = [
        "# params.yaml",
        "",
        "`params.yaml` contains every value that you can change. This page is generated from the "
        "models that check the file. The defaults are those of the `params.yaml` in the "
        "repository; the code has none. A key that is unknown, missing or of another type is an "
        "error.",
        "",
        "```console",
        "$ clickmill params            # the values as they are used",
        "$ clickmill params --schema   # the JSON Schema, for editors",
        "```",
        "",
    ]
    for name, reference in schema["properties"].items():
        lines += [f"## {name}", ""]
        section = _resolve(reference, schema)
        if description := reference.get("description", section.get("description")):
            lines += [description, ""]
        rows = _keys("", section, schema, defaults[name])
        if rows:
            lines += ["| key | type | default | allowed | meaning |", "|---|---|---|---|---|"]
            lines += [*map(_row, rows), ""]
        else:  # a value, and no section
            lines += [f"Default: `{_yaml_text(defaults[name])}`", ""]
    return "\n".join(lines)


def _keys(prefix: str, section: Any, schema: Any, defaults: Any) -> list[tuple[str, ...]]:
    """Return a row for each key of a section, with the keys of nested sections after it."""
    rows = []
    for key, reference in section.get("properties", {}).items():
        path = f"{prefix}{key}"
        value = _resolve(reference, schema)
        default = defaults.get(key, "") if isinstance(defaults, dict) else ""
        meaning = reference.get("description", "")
        if "const" in value:  # the name that chose this section
            continue
        if "properties" in value:
            rows.append((f"`{path}`", "section", "", "", meaning))
            rows += _keys(f"{path}.", value, schema, default)
        elif "discriminator" in value:
            rows += _choices(path, value, schema, default, meaning)
        else:
            shown = f"`{_yaml_text(default)}`"
            rows.append((f"`{path}`", _type(value, schema), shown, _allowed(value), meaning))
    return rows


def _choices(
    path: str, value: Any, schema: Any, default: Any, meaning: str
) -> list[tuple[str, ...]]:
    """Return the rows of a section that is one of several, chosen by the key `name` or `by`."""
    key = value["discriminator"]["propertyName"]
    mapping = value["discriminator"]["mapping"]
    names = ", ".join(f"`{name}`" for name in mapping)
    rows = [(f"`{path}.{key}`", "string", f"`{default[key]}`", names, meaning)]
    for name, reference in mapping.items():
        chosen = _resolve({"$ref": reference}, schema)
        used = default if default[key] == name else None
        inner = _keys(f"{path}.", chosen, schema, used)
        if "description" in chosen and inner:
            rows.append((f"`{path}` = `{name}`", "section", "", "", chosen["description"]))
        rows += [
            (f"{cells[0]} (`{name}`)", cells[1], cells[2] if used is not None else "", *cells[3:])
            for cells in inner
        ]
    return rows


def _resolve(value: Any, schema: Any) -> Any:
    if "$ref" not in value:
        return value
    return schema["$defs"][value["$ref"].rsplit("/", 1)[1]]


def _type(value: Any, schema: Any) -> str:
    if "anyOf" in value:
        return " or ".join(_type(_resolve(one, schema), schema) for one in value["anyOf"])
    if value.get("type") == "array":
        return f"list of {_type(_resolve(value['items'], schema), schema)}"
    return str(value.get("type", "string"))


def _allowed(value: Any) -> str:
    """Return the range or the choices of a value."""
    parts = [_allowed(one) for one in value.get("anyOf", [])]
    if value.get("type") == "array":
        parts.append(_allowed(value["items"]))
    if "enum" in value:
        parts.append(", ".join(f"`{one}`" for one in value["enum"]))
    signs = {
        "exclusiveMinimum": ">",
        "minimum": "≥",
        "exclusiveMaximum": "<",
        "maximum": "≤",
    }
    bounds = [f"{sign} {value[key]:g}" for key, sign in signs.items() if key in value]
    parts.append(" and ".join(bounds))
    if "pattern" in value:
        parts.append(f"`{value['pattern']}`")
    return ", ".join(filter(None, parts))


def _yaml_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
