"""The steps that a server has applied: each once, however often its gradients come."""

from collections.abc import Callable


class AppliedSteps:
    """Applies the gradients of steps.

    A worker can end when some servers have the gradients of its step and others have not. Another
    worker then computes the step again. Without staleness nobody has seen the new weights yet, so
    the gradients wait until the next step begins: those of a step that begins again are forgotten,
    and the result is as if the worker had not ended. With staleness they are applied at once, and
    a repetition changes nothing.

    Args:
        waits: Whether gradients wait until the next step begins.
    """

    def __init__(self, *, waits: bool) -> None:
        self.waits = waits
        self.applied: set[int] = set()  # since the last barrier
        self.waiting: tuple[int, Callable[[], None]] | None = None

    def push(self, step: int, apply: Callable[[], None]) -> None:
        """Take the gradients of a step.

        Args:
            step: The step, counted over epochs.
            apply: Applies them.
        """
        if step in self.applied:
            return
        if self.waits:
            self.begin(step)
            self.waiting = (step, apply)
        else:
            self.applied.add(step)
            apply()

    def begin(self, step: int | None) -> None:
        """Apply the gradients that wait, or forget them if they are those of the step that begins.

        Args:
            step: The step that begins; None at a barrier.
        """
        if self.waiting is None:
            return
        waiting_step, apply = self.waiting
        self.waiting = None
        if waiting_step != step:
            self.applied.add(waiting_step)
            apply()

    def barrier(self) -> None:
        """Apply what waits, and forget the steps: none of them is pushed again."""
        self.begin(None)
        self.applied.clear()

    def clear(self) -> None:
        """Forget everything, because the weights are loaded again."""
        self.waiting = None
        self.applied.clear()
