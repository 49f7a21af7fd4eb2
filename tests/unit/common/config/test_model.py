"""The section `model`: what cannot work is refused with a reason; what the comments offer works."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from common.config.loading import ConfigError, check
from common.config.model import Model
from tests.factories.support import ROOT, plain_model

QR = {"name": "quotient_remainder", "operation": "mult", "collisions": 4, "threshold": 200}
MIXED = {"name": "mixed_dim", "alpha": 0.3, "threshold": 200}
PER_COLUMN = {"name": "per_column", "dims": {"C1": 0, "C2": 16}}
CROSS = {"name": "cross", "layers": 3, "rank": None}
BCE = {"name": "bce", "positive_weight": 1, "label_smoothing": 0}
FOCAL = {"name": "focal", "gamma": 2, "alpha": 0.25}


def parse(**changes: Any) -> Model:
    widths = {"embedding_dim": 16, "bottom_mlp": [8], "top_mlp": [8]}
    return check(Model, plain_model(**widths | changes), Path("params.yaml"))


def test_what_the_comments_offer_is_accepted() -> None:
    """Each `{name: ...}` in the comments of the section is accepted by its key."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    section = text[text.index("\nmodel:") : text.index("\ntrain:")]
    offered = [
        YAML(typ="safe", pure=True).load(found)
        for found in re.findall(r"\{name: (?:[^{}]|\{[^}]*\})*\}", section)
    ]
    keys = {"dot": "interaction", "cat": "interaction", "cross": "interaction", "focal": "loss"}
    assert {part["name"] for part in offered} == {
        "dot",
        "cat",
        "cross",
        "full",
        "quotient_remainder",
        "mixed_dim",
        "per_column",
        "focal",
    }
    for part in offered:
        key = keys.get(part["name"], "tables")
        assert getattr(parse(**{key: part}), key).name == part["name"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"interaction": {"name": "sum"}},
            "interaction.name: .*'dot', 'cat', 'cross' .found 'sum'",
        ),
        ({"interaction": {"name": "dot", "layers": 3}}, "interaction.layers: no such key"),
        ({"interaction": {"name": "cross", "layers": 3}}, "interaction.rank: missing"),
        ({"interaction": {"layers": 3}}, "interaction.name: missing"),
        ({"interaction": {"name": None}}, "interaction.name: .*found None"),
        ({"interaction": {"name": ["dot"]}}, r"interaction.name: .*found \['dot'\]"),
        ({"interaction": "dot"}, "interaction: expected a mapping .found 'dot'"),
        ({"interaction": CROSS | {"layers": 0}}, "interaction.layers: .*found 0"),
        ({"interaction": CROSS | {"rank": 0}}, "interaction.rank: .*found 0"),
        (
            {"tables": {"name": "hashed"}},
            "tables.name: .*'full', 'quotient_remainder', 'mixed_dim', 'per_column' .found 'hashed'",
        ),
        ({"tables": QR | {"operation": "sub"}}, "tables.operation: .*found 'sub'"),
        (
            {"tables": QR | {"collisions": 1}},
            "tables: with 1 collisions a feature of 201 values, .* takes 202 rows",
        ),
        (
            {"tables": QR | {"collisions": 200}},
            "with 200 collisions a feature of 201 values, .* takes 202 rows",
        ),
        (
            {"tables": QR | {"threshold": 5}},
            "with 4 collisions a feature of 6 values, .* takes 6 rows.*higher threshold",
        ),
        (
            {"tables": QR | {"operation": "concat"}, "embedding_dim": 15},
            "with concat needs an even embedding_dim, and 15 is odd",
        ),
        ({"tables": MIXED | {"alpha": 0}}, "tables.alpha: .*found 0"),
        ({"tables": MIXED | {"alpha": 1.5}}, "tables.alpha: .*found 1.5"),
        ({"tables": MIXED | {"threshold": 0}}, "tables.threshold: .*found 0"),
        (
            {"tables": MIXED, "embedding_dim": 24},
            "mixed_dim needs an embedding_dim that is a power of two, and 24 is not",
        ),
        ({"tables": PER_COLUMN | {"dims": {"C1": -1}}}, "tables.dims.C1: .*found -1"),
        ({"tables": PER_COLUMN | {"dims": {"C1": 2.5}}}, "tables.dims.C1: .*found 2.5"),
        ({"tables": PER_COLUMN | {"dims": None}}, "tables.dims: .*found None"),
        ({"tables": {"name": "per_column"}}, "tables.dims: missing"),
        (
            {"tables": PER_COLUMN | {"dims": {"C1": 17}}},
            "dims.C1 is 17, more than embedding_dim, 16; take at most that",
        ),
        ({"loss": BCE | {"positive_weight": 0}}, "loss.positive_weight: .*found 0"),
        ({"loss": BCE | {"label_smoothing": 1}}, "loss.label_smoothing: .*found 1"),
        ({"loss": FOCAL | {"label_smoothing": 0.1}}, "loss.label_smoothing: no such key"),
        ({"loss": FOCAL | {"alpha": 1}}, "loss.alpha: .*found 1"),
        ({"loss": FOCAL | {"gamma": -1}}, "loss.gamma: .*found -1"),
        ({"loss": FOCAL | {"gamma": float("inf")}}, "loss.gamma: .*found inf"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"params\.yaml: .*{message}"):
        parse(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": QR | {"threshold": 7}},
        {"tables": MIXED, "embedding_dim": 32},
        {"tables": PER_COLUMN},
    ],
)
def test_what_just_works_is_accepted(changes: dict[str, Any]) -> None:
    parse(**changes)
