"""Tests of README.md and the documentation.

The commands, make targets, options and paths that they name exist, and the blocks of README.md that
are marked `<!-- tested -->` are executed. In a ```console block the lines after `$ ` are commands
and the others are their output; in a ```bash or ```sh block every line is a command.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from typer.core import TyperGroup

from flows.cli.main import app
from tests.factories.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
NUM_ROWS = 20_000
MADE_BY_A_RUN = ("dvc.lock", "artifacts/", "runs/", "data/", "mlruns/")


class Block(NamedTuple):
    tested: bool
    commands: str


def blocks(text: str) -> list[Block]:
    """Return the fenced console, bash and sh blocks, in order."""
    found = []
    for mark, kind, body in re.findall(
        r"(<!-- tested -->\n+)?^```(console|bash|sh)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        lines = [
            line.removeprefix("$ ")
            for line in body.splitlines()
            if kind != "console" or line.startswith("$ ")
        ]
        found.append(Block(bool(mark), "\n".join(lines)))
    return found


def command_lines(text: str) -> list[list[str]]:
    """Return the words of every command in the blocks of a document."""
    return [
        words
        for block in blocks(text)
        for line in block.commands.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]


BLOCKS = blocks(README)
TESTED = [block.commands for block in BLOCKS if block.tested]
LINES = command_lines(README)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy this checkout, with a smaller sample log; the blocks run in it one after the other."""
    copy = tmp_path_factory.mktemp("readme") / "clickmill"
    files = subprocess.check_output(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True
    ).split("\0")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    params = copy / "params.yaml"
    params.write_text(
        re.sub(r"num_rows: \d+", f"num_rows: {NUM_ROWS}", params.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    (copy / "home").mkdir()
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "copy"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy


def test_the_readme_has_commands_and_some_are_run() -> None:
    assert len(BLOCKS) >= 3
    assert TESTED


@pytest.mark.slow
@pytest.mark.parametrize("commands", TESTED)
def test_a_tested_block_runs(checkout: Path, commands: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HOME": str(checkout / "home"), "DO_NOT_TRACK": "1"}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=checkout,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, f"{commands}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"


def test_every_make_target_named_exists() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = {words[1] for words in LINES if words[0] == "make" and len(words) > 1} | set(
        re.findall(r"`make ([a-z-]+)`", README)
    )
    assert "train" in named
    assert named <= targets


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_clickmill_command_and_option_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    inline = [shlex.split(code) for code in re.findall(r"`(clickmill [^`]+)`", text)]
    for words in [*command_lines(text), *inline]:
        if words[0] == "clickmill":
            assert faults_of(words) == []


def faults_of(words: list[str]) -> list[str]:
    """Return the words of a clickmill command that name no command and no option."""
    command: Any = typer.main.get_command(app)
    arguments = [word for word in words[1:] if word != "..." and not word.isupper()]
    while isinstance(command, TyperGroup) and arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in command.commands:
            return [f"{shlex.join(words)}: no command {name}"]
        command = command.commands[name]
    known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
    options = {word.split("=")[0] for word in arguments if word.startswith("--")}
    return [f"{shlex.join(words)}: no option {option}" for option in sorted(options - known)]


def test_a_command_that_does_not_exist_is_found() -> None:
    assert faults_of(["clickmill", "nightly", "prune", "--runs", "30", "--dry-run"]) == []
    assert faults_of(["clickmill", "stage", "trian"]) == ["clickmill stage trian: no command trian"]
    assert faults_of(["clickmill", "run", "--fast"]) == ["clickmill run --fast: no option --fast"]


def test_every_path_named_exists() -> None:
    inline = re.findall(
        r"`([\w.-]+(?:/[\w.*-]+)*/|[\w.-]+(?:/[\w.-]+)+\.\w+|[\w.-]+\.(?:yaml|toml|lock|md|py))`",
        README,
    )
    links = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if "://" not in target]
    missing = [
        name
        for name in [*inline, *links]
        if not name.startswith(MADE_BY_A_RUN) and not (ROOT / name).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_the_code_that_a_document_names_exists(path: Path) -> None:
    rooms = "common|features|serving|training|flows|docker|benchmarks|examples|tests"
    named = re.findall(rf"`((?:{rooms})/[\w./-]+)`", path.read_text(encoding="utf-8"))
    examples = ("NAME", "shop.yaml")
    missing = [
        name
        for name in named
        if not (ROOT / name).exists() and not any(e in name for e in examples)
    ]
    assert missing == []


def test_blocks_are_read_as_a_reader_would() -> None:
    text = "```console\n$ ls -a\nREADME.md\n$ pwd\n```\n<!-- tested -->\n\n```bash\nls\npwd\n```\n```yaml\nx: 1\n```\n"
    assert blocks(text) == [Block(False, "ls -a\npwd"), Block(True, "ls\npwd")]
