"""README.md says what is so: its commands, make targets, options and paths exist, and the blocks marked `<!-- tested -->` are run.

In a ```console block the lines after `$ ` are commands and the rest is what they print; in a ```bash block every line is a command.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from typer.core import TyperGroup

from flows.cli.main import app
from tests.factories.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
NUM_ROWS = 20_000
MADE_BY_A_RUN = ("dvc.lock", "artifacts/", "runs/", "data/", "mlruns/")


class Block(NamedTuple):
    tested: bool
    commands: str


def blocks(text: str) -> list[Block]:
    """The fenced console and bash blocks, in order."""
    found = []
    for mark, kind, body in re.findall(
        r"(<!-- tested -->\n+)?^```(console|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        lines = [
            line.removeprefix("$ ")
            for line in body.splitlines()
            if kind == "bash" or line.startswith("$ ")
        ]
        found.append(Block(bool(mark), "\n".join(lines)))
    return found


BLOCKS = blocks(README)
TESTED = [block.commands for block in BLOCKS if block.tested]
LINES = [
    words
    for block in BLOCKS
    for line in block.commands.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True))
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh copy of this checkout, with a smaller sample log; the blocks run in it one after the other."""
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
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = {words[1] for words in LINES if words[0] == "make" and len(words) > 1} | set(
        re.findall(r"`make ([a-z]+)`", README)
    )
    assert "train" in named
    assert named <= targets


def test_every_clickmill_command_and_option_named_exists() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    inline = [shlex.split(text) for text in re.findall(r"`(clickmill [^`]+)`", README)]
    for words in [
        words for words in [*LINES, *inline] if words[0] == "clickmill" and len(words) > 1
    ]:
        if words[1].startswith("-"):
            continue
        assert words[1] in group.commands, f"{shlex.join(words)}: no such command"
        known = {
            option for parameter in group.commands[words[1]].params for option in parameter.opts
        } | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, shlex.join(
            words
        )


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


def test_blocks_are_read_as_a_reader_would() -> None:
    text = "```console\n$ ls -a\nREADME.md\n$ pwd\n```\n<!-- tested -->\n\n```bash\nls\npwd\n```\n```yaml\nx: 1\n```\n"
    assert blocks(text) == [Block(False, "ls -a\npwd"), Block(True, "ls\npwd")]
