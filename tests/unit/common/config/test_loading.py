"""Odd YAML and JSON is refused in one line, in bounded memory and time."""

import os
from pathlib import Path
from typing import Any

import pytest

from common.config.base import Positive, Strict
from common.config.loading import ConfigError, check, check_json, read_json_as, read_yaml
from common.files import DataError


def nested(levels: int, first: str, others: str) -> str:
    """Return YAML in which each level has nine aliases of the level above."""
    lines = [f"a0: &a0 {first}"]
    lines += [
        f"a{k}: &a{k} {others.format(','.join([f'*a{k - 1}'] * 9))}" for k in range(1, levels)
    ]
    return "\n".join(lines)


ODD_YAML = {
    "bomb": (nested(10, "[x]", "[{}]"), "has more than 50,000 values"),
    "bomb of merged keys": (nested(10, "{x: 1}", "{{<<: [{}]}}"), "has more than 50,000 values"),
    "contains itself": ("a: &a [*a]", "has more than 50,000 values"),
    "deep": ("a: " + "[" * 1000, "nested in more than 50 levels"),
    "deep mapping": ("".join(f"{' ' * k}a:\n" for k in range(60)), "in more than 50 levels"),
    "large": ("# " + "x" * (1 << 18), "has 262,146 bytes, and at most 262,144"),
    "huge integer": ("a: 1\nb: " + "9" * 5000, "line 2: a number of 5,000 digits"),
    "huge hexadecimal": ("a: 0x" + "f" * 5000, "line 1: a number of 5,002 digits"),
    "duplicate key": ("a: 1\na: 2", 'duplicate key "a" .* line 2'),
    "integer as key": ("a: 1\n2: 3", "line 2: the key '2' is no text"),
    "null as key": ("~: 3", "line 1: the key '~' is no text"),
    "date as key": ("2024-01-01: 3", "line 1: the key '2024-01-01' is no text"),
    "list as key": ("? [a, b]\n: 1", "line 1: the key of a collection is no text"),
    "mapping as key": ("? {a: b}\n: 1", "line 1: the key of a collection is no text"),
    "date": ("a: 2024-01-01", "line 1: '2024-01-01' is of the kind 'timestamp'.*quotes"),
    "no date": ("a: 2024-13-45", "line 1: '2024-13-45' is of the kind 'timestamp'"),
    "binary": ("a: !!binary abcd", "line 1: 'abcd' is of the kind 'binary'"),
    "set": ("a: !!set {x}", "line 1: a collection is of the kind 'set'"),
    "code": ("a: !!python/object:os.system x", "'x' is of the kind 'python/object:os.system'"),
    "no integer": ("a: !!int x", "is not YAML: .*'x'"),
    "no boolean": ("a: !!bool x", "is not YAML: .*'x'"),
    "half a character": ('a: "\\ud800"', "is not YAML: .*surrogates"),
    "tab": ("a:\n\tb: 1", "is not YAML: .*line 2"),
    "NUL": ("a: \0", "is not YAML: .*x0000"),
    "undefined alias": ("a: *x", "undefined alias 'x', in line 1"),
    "several documents": ("a: 1\n---\nb: 2", "another document, in line 2"),
    "empty": ("", "expected a mapping, found NoneType"),
    "merged number": ("<<: 3", "is not YAML: .*line 1"),
}


@pytest.mark.parametrize("name", ODD_YAML)
def test_odd_yaml_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    text, message = ODD_YAML[name]
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"params\.yaml.*{message}") as error:
        read_yaml(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


def test_anchors_and_merged_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: [*a, *b]\nd: &a 3\n")
    assert read_yaml(path) == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1, "y": 2}],
        "d": 3,
    }


def test_a_file_is_read_as_it_is_now_whatever_became_of_earlier_values(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("a: {x: [1]}\n")
    read_yaml(path)["a"]["x"].append(2)
    assert read_yaml(path) == {"a": {"x": [1]}}
    path.write_text("a: {x: [3]}\n")
    assert read_yaml(path) == {"a": {"x": [3]}}


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in (("folder", "a folder"), ("pipe", "a named pipe"), ("link", "a named pipe")):
        with pytest.raises(ConfigError, match=rf"{name} is {kind}; a file expected"):
            read_yaml(tmp_path / name)


class Inner(Strict):
    """A part of a file."""

    width: Positive
    names: list[str]


class Outer(Strict):
    """The contents of a file."""

    inner: Inner
    anything: dict[str, Any]


GOOD = {"inner": {"width": 1, "names": []}, "anything": {}}
DEEP: Any = []
for _ in range(5000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"a\.json: expected a mapping \(found \[\]\)"),
        (GOOD | {"inner": None}, r"a\.json: inner: expected a mapping \(found None\)"),
        (
            GOOD | {"inner": DEEP},
            r"a\.json: inner: expected a mapping \(found a value of type list\)",
        ),
        (GOOD | {"inner": {"width": 1}}, r"a\.json: inner\.names: missing"),
        (GOOD | {"inner": {"width": True, "names": []}}, r"a\.json: inner\.width: .*found True"),
        (
            GOOD | {"inner": {"width": 10**5000, "names": []}},
            r"inner\.width: .*found a value of type int",
        ),
        (GOOD | {"inner": {"width": "x" * 10**6, "names": []}}, r"inner\.width: .*found 'x+…\)"),
        (GOOD | {"inner": {"width": 1, "names": [1] * 50}}, r"names\.0: .*\(and 20 more\)"),
        (GOOD | {"\n\x1b[31m": 1}, r"a\.json: \\n\\x1b\[31m: no such key \(found 1\)"),
        (GOOD | {"x" * 10**6: 1}, r"a\.json: x+…: no such key"),
    ],
    ids=range(10),
)
def test_a_json_value_that_does_not_fit_is_refused_in_one_line(value: Any, message: str) -> None:
    check_json(Outer, GOOD, Path("a.json"), "make it again")
    with pytest.raises(DataError, match=rf"{message}.*; make it again$") as error:
        check_json(Outer, value, Path("a.json"), "make it again")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 5000


def test_a_json_file_that_is_damaged_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json is not JSON \(.*\); make it again"):
        read_json_as(Outer, tmp_path / "a.json", "make it again")


def test_at_most_twenty_faults_are_shown() -> None:
    values = GOOD | {"inner": {"width": 1, "names": [1] * 50}}
    with pytest.raises(ConfigError, match=r"a\.json: 30 more faults") as error:
        check(Outer, values, Path("a.json"))
    assert len(str(error.value).splitlines()) == 21
