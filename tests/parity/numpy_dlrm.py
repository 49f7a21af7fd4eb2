"""DLRM in NumPy, written from its definition: forward pass, loss, gradients and optimizers.

The parity tests compare the tested code with it, and it uses none of that code. The gradients are
derived by hand, tables are separate arrays, and np.add.at adds up the gradients of repeated rows.

Shapes: B batch, N dense features, F categorical features, D embedding dim.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
EPS = 1e-10


class NumpyDLRM:
    """A DLRM with dot interaction.

    Args:
        tables: F arrays (n, D).
        bottom: The layers of the bottom MLP, each (W, b) of the shapes (out, in) and (out,).
        top: The layers of the top MLP.
    """

    def __init__(
        self, tables: list[Array], bottom: list[tuple[Array, Array]], top: list[tuple[Array, Array]]
    ) -> None:
        self.tables, self.bottom, self.top = tables, bottom, top
        self.squares = [np.zeros(len(table), table.dtype) for table in tables]

    def forward(self, dense: Array, rows: Array) -> Array:
        """Return the logits (B,) for dense (B, N) and rows (B, F, D)."""
        self.bottom_in, bottom_out = forward_layers(self.bottom, dense, relu_last=True)
        self.vectors = np.stack([bottom_out, *rows.transpose(1, 0, 2)], axis=1)
        self.pairs = [(i, j) for i in range(self.vectors.shape[1]) for j in range(i)]
        dots = [(self.vectors[:, i] * self.vectors[:, j]).sum(axis=1) for i, j in self.pairs]
        self.top_in, logits = forward_layers(
            self.top, np.concatenate([bottom_out, np.stack(dots, axis=1)], axis=1), relu_last=False
        )
        return logits[:, 0]

    def backward(
        self, grad_logits: Array
    ) -> tuple[Array, list[tuple[Array, Array]], list[tuple[Array, Array]]]:
        """Return the gradients of the rows (B, F, D), the bottom layers and the top layers."""
        grad, top = backward_layers(self.top, self.top_in, grad_logits[:, None])
        D = self.vectors.shape[2]
        grad_vectors = np.zeros_like(self.vectors)
        grad_vectors[:, 0] = grad[:, :D]
        for k, (i, j) in enumerate(self.pairs):
            grad_vectors[:, i] += grad[:, D + k, None] * self.vectors[:, j]
            grad_vectors[:, j] += grad[:, D + k, None] * self.vectors[:, i]
        _, bottom = backward_layers(
            self.bottom, self.bottom_in, grad_vectors[:, 0] * (self.vectors[:, 0] > 0)
        )
        return grad_vectors[:, 1:], bottom, top

    def lookup(self, ids: NDArray[np.integer]) -> Array:
        """Return the rows (B, F, D) of ids (B, F)."""
        return np.stack([table[ids[:, f]] for f, table in enumerate(self.tables)], axis=1)

    def step(
        self, dense: Array, ids: NDArray[np.integer], labels: Array, lr: float, tables: str
    ) -> float:
        """Do one training step with binary cross-entropy. SGD updates the MLPs.

        Args:
            dense: (B, N).
            ids: (B, F).
            labels: (B,), 0 or 1.
            lr: Learning rate of all optimizers.
            tables: Optimizer of the tables, `sgd` or `rowwise_adagrad`.

        Returns:
            The loss before the step.
        """
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
        """Subtract lr times the gradients."""
        for (weight, bias), (grad_weight, grad_bias) in zip(
            [*self.bottom, *self.top], [*bottom, *top], strict=True
        ):
            weight -= weight.dtype.type(lr) * grad_weight
            bias -= bias.dtype.type(lr) * grad_bias


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def bce(logits: Array, labels: Array) -> float:
    """Return the mean binary cross-entropy."""
    p = sigmoid(logits.astype(np.float64))
    return float(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())


def forward_layers(
    layers: list[tuple[Array, Array]], x: Array, relu_last: bool
) -> tuple[list[Array], Array]:
    """Return the input of every layer, and the output of the last."""
    inputs = []
    for k, (weight, bias) in enumerate(layers):
        inputs.append(x)
        x = x @ weight.T + bias
        if relu_last or k + 1 < len(layers):
            x = np.maximum(x, 0)
    return inputs, x


def backward_layers(
    layers: list[tuple[Array, Array]], inputs: list[Array], grad: Array
) -> tuple[Array, list[tuple[Array, Array]]]:
    """Return the gradient of the first layer's input, and the gradients of each layer.

    Args:
        layers: (W, b) of each layer.
        inputs: The inputs that forward_layers returned.
        grad: The gradient of the last layer's output, before a ReLU.
    """
    grads = []
    for k, ((weight, _), x) in reversed(list(enumerate(zip(layers, inputs, strict=True)))):
        grads.append((grad.T @ x, grad.sum(axis=0)))
        grad = grad @ weight
        if k > 0:
            grad = grad * (x > 0)  # x is the ReLU of the layer before
    return grad, grads[::-1]
