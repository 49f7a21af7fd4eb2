"""DLRM in NumPy, written from its definition alone (docs: forward, loss, gradients by hand, optimizers), to hold the real one against.

Tables are separate arrays here, repeats are summed with np.add.at: nothing is shared with the code under test.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
EPS = 1e-10


class NumpyDLRM:
    """tables: F arrays (n, D). bottom, top: lists of (W (out, in), b (out,))."""

    def __init__(
        self, tables: list[Array], bottom: list[tuple[Array, Array]], top: list[tuple[Array, Array]]
    ) -> None:
        self.tables, self.bottom, self.top = tables, bottom, top
        self.squares = [np.zeros(len(table), table.dtype) for table in tables]

    def forward(self, dense: Array, rows: Array) -> Array:
        """dense (B, N), rows (B, F, D) -> logits (B,); keeps what the backward pass needs."""
        self.bottom_in, bottom_out = through(self.bottom, dense, relu_last=True)
        self.vectors = np.stack([bottom_out, *rows.transpose(1, 0, 2)], axis=1)
        self.pairs = [(i, j) for i in range(self.vectors.shape[1]) for j in range(i)]
        dots = [(self.vectors[:, i] * self.vectors[:, j]).sum(axis=1) for i, j in self.pairs]
        self.top_in, logits = through(
            self.top, np.concatenate([bottom_out, np.stack(dots, axis=1)], axis=1), relu_last=False
        )
        return logits[:, 0]

    def backward(
        self, grad_logits: Array
    ) -> tuple[Array, list[tuple[Array, Array]], list[tuple[Array, Array]]]:
        """Gradients of the rows (B, F, D), the bottom's and the top's layers."""
        grad, top = back(self.top, self.top_in, grad_logits[:, None])
        D = self.vectors.shape[2]
        grad_vectors = np.zeros_like(self.vectors)
        grad_vectors[:, 0] = grad[:, :D]
        for k, (i, j) in enumerate(self.pairs):
            grad_vectors[:, i] += grad[:, D + k, None] * self.vectors[:, j]
            grad_vectors[:, j] += grad[:, D + k, None] * self.vectors[:, i]
        _, bottom = back(self.bottom, self.bottom_in, grad_vectors[:, 0] * (self.vectors[:, 0] > 0))
        return grad_vectors[:, 1:], bottom, top

    def lookup(self, ids: NDArray[np.integer]) -> Array:
        return np.stack([table[ids[:, f]] for f, table in enumerate(self.tables)], axis=1)

    def step(
        self, dense: Array, ids: NDArray[np.integer], labels: Array, lr: float, tables: str
    ) -> float:
        """One training step with binary cross entropy; SGD for the MLPs, sgd or rowwise_adagrad for the tables. Returns the loss."""
        logits = self.forward(dense, self.lookup(ids))
        grad_rows, bottom, top = self.backward(
            (sigmoid(logits) - labels) / labels.dtype.type(len(labels))
        )
        self.update_mlps(bottom, top, lr)
        for f, table in enumerate(self.tables):
            grad = np.zeros_like(table)
            np.add.at(grad, ids[:, f], grad_rows[:, f])
            if tables == "rowwise_adagrad":
                self.squares[f] += (grad**2).mean(axis=1)
                grad /= (np.sqrt(self.squares[f]) + table.dtype.type(EPS))[:, None]
            table -= table.dtype.type(lr) * grad
        return bce(logits, labels)

    def update_mlps(
        self, bottom: list[tuple[Array, Array]], top: list[tuple[Array, Array]], lr: float
    ) -> None:
        for (weight, bias), (grad_weight, grad_bias) in zip(
            [*self.bottom, *self.top], [*bottom, *top], strict=True
        ):
            weight -= weight.dtype.type(lr) * grad_weight
            bias -= bias.dtype.type(lr) * grad_bias


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def bce(logits: Array, labels: Array) -> float:
    p = sigmoid(logits.astype(np.float64))
    return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())


def through(
    layers: list[tuple[Array, Array]], x: Array, relu_last: bool
) -> tuple[list[Array], Array]:
    """The input of every layer, and the output of the last."""
    inputs = []
    for k, (weight, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ weight.T + bias
        if relu_last or k + 1 < len(layers):
            x = np.maximum(x, 0)
    return inputs, x


def back(
    layers: list[tuple[Array, Array]], inputs: list[Array], grad: Array
) -> tuple[Array, list[tuple[Array, Array]]]:
    """grad: with respect to the last layer's output before its ReLU. Returns the input's gradient and each layer's."""
    grads = []
    for k, ((weight, _), x) in reversed(list(enumerate(zip(layers, inputs, strict=True)))):
        grads.append((grad.T @ x, grad.sum(axis=0)))
        grad = grad @ weight
        if k > 0:
            grad = grad * (x > 0)  # x is the ReLU of the layer before
    return grad, grads[::-1]
