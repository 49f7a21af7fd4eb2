"""The rows of a step on a worker, with the compiled kernels and with PyTorch alone."""

import pytest
import torch
from torch import Tensor

from training.kernels import choice, compiler
from training.kernels.choice import Implementations, Operators
from training.servers.pulled_rows import PulledRows, Wanted

SIZES = [3, 1, 500]
D = 4
IDS = torch.tensor([[0, 0, 499], [2, 0, 7], [2, 0, 499], [0, 0, 0]])
DISTINCT = [0, 2, 3, 4, 11, 503]  # in the concatenation of the tables
both = pytest.mark.parametrize(
    "operators",
    [
        pytest.param(
            "compiled",
            marks=pytest.mark.skipif(compiler.library() is None, reason="no compiled kernels"),
        ),
        "pytorch",
    ],
)


def wanted_of(ids_BF: Tensor) -> tuple[PulledRows, Wanted]:
    rows = PulledRows(SIZES, D, torch.Generator())
    return rows, rows.wanted(ids_BF)


@both
def test_each_row_is_pulled_once_and_found_again(operators: Operators) -> None:
    with choice.forced(Implementations(operators, "pytorch")):
        rows, wanted = wanted_of(IDS)
        assert wanted.rows.tolist() == DISTINCT
        pulled_UD = torch.arange(len(DISTINCT) * D).float().view(-1, D)
        rows.hold(pulled_UD)
        assert isinstance(wanted.selection, Tensor)
        expected = [
            [DISTINCT.index(row) for row in of_row]
            for of_row in (IDS + torch.tensor([0, 3, 4])).tolist()
        ]
        assert torch.equal(rows(wanted.selection), pulled_UD[torch.tensor(expected)])


@both
def test_gradients_of_a_row_are_added(operators: Operators) -> None:
    with choice.forced(Implementations(operators, "pytorch")):
        rows, wanted = wanted_of(IDS)
        rows.hold(torch.ones(len(DISTINCT), D))
        grad_BFD = torch.randn(*IDS.shape, D, generator=torch.Generator().manual_seed(1))
        summed_UD = rows.summed(wanted.selection, [grad_BFD])
    expected_UD = torch.stack(
        [grad_BFD[IDS + torch.tensor([0, 3, 4]) == row].sum(dim=0) for row in DISTINCT]
    )
    torch.testing.assert_close(summed_UD, expected_UD)


@both
@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_outside_its_table_is_refused(operators: Operators, bad: int) -> None:
    ids_BF = IDS.clone()
    ids_BF[1, 0] = bad
    with (
        choice.forced(Implementations(operators, "pytorch")),
        pytest.raises(IndexError, match="outside its table"),
    ):
        wanted_of(ids_BF)
