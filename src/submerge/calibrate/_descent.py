"""Steps of AdamW on coefficients, each on the next batch of every task."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from submerge.calibrate._collect import ModelInputs
from submerge.calibrate._objectives import Objective
from submerge.calibrate._options import LearnOptions, Step
from submerge.calibrate._parametrisation import Parametrisation
from submerge.calibrate._sources import Inputs
from submerge.errors import Problem, RequestError

__all__ = ["Descent"]


class Descent:
    """The minimisation of L(λ) = 1/K Σ_k Ω_k + pull · mean (λ − λ_init)².

    Attributes:
        loss: L before each step on that step's batches, and after the last step on the next ones.
        seconds: that all steps took.
    """

    def __init__(
        self,
        objective: Objective,
        coefficients: Parametrisation,
        data: Sequence[Inputs],
        options: LearnOptions,
    ) -> None:
        self.objective, self.coefficients, self.options = objective, coefficients, options
        self._next = [_in_turn(inputs, options.seed) for inputs in data]
        self.loss: list[float] = []
        self.seconds = 0.0

    def run(self, steps: int, progress: Callable[[Step], None] | None = None) -> None:
        """Take steps, and measure the loss once more."""
        start = time.perf_counter()
        if steps:
            optimiser = torch.optim.AdamW(
                self.coefficients.learned,
                lr=self.options.learning_rate,
                weight_decay=self.options.weight_decay,
                fused=True,  # hundreds of numbers, each a tensor: one call for all of them
            )
        for number in range(steps + 1):
            last = number == steps
            if last:
                self.seconds = time.perf_counter() - start
            with torch.set_grad_enabled(not last):
                self.loss.append(self._measure())
            self._check_loss()
            if progress is not None:
                progress(Step(number, steps, self.loss[-1]))
            if not last:
                self._step(optimiser)

    def _check_loss(self) -> None:
        """Raise `RequestError` where the last loss is no number: nor would coefficients be after it."""
        loss, number = self.loss[-1], len(self.loss) - 1
        if math.isfinite(loss):
            return
        if number:
            hint = "take a smaller learning_rate, or bounds of the coefficients"
            raise RequestError(Problem(f"the loss is {loss} after {number} steps", "learning_rate", hint))
        hint = "run it in float32 (dtype, or compute_dtype of a recipe), and give inputs that reach the hooks"
        raise RequestError(Problem(f"the loss is {loss} before any step", "the base with its adapters", hint))

    def _measure(self) -> float:
        """Return L on the next batches; where gradients are enabled the coefficients have them then."""
        total = sum(self._add(k) for k in range(len(self._next)))
        self.coefficients.note_reached()
        if self.options.pull:
            total += self._backward(self.options.pull * self.coefficients.distance())
        return total

    def _add(self, k: int) -> float:
        """Return the share of task k; one backward pass a task, so that no two graphs are held."""
        count = len(self._next)
        scales = self.coefficients.scales(count)
        return self._backward(self.objective(k, next(self._next[k]), scales) / count)

    def _backward(self, part: torch.Tensor) -> float:
        if part.requires_grad:  # nothing that is learned comes before hooks in the first module
            part.backward()  # type: ignore[no-untyped-call]
        return part.item()

    def _step(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.step()  # leaves out parameters whose gradient is None: they do not even decay
        optimiser.zero_grad(set_to_none=True)
        if self.options.bounds is not None:
            self.coefficients.clamp_(*self.options.bounds)


def _in_turn(batches: Inputs, seed: int) -> Iterator[ModelInputs]:
    """Yield batches without end, in their order, or with a seed in another one at each pass over them."""
    draw = random.Random(seed)
    order = list(range(len(batches)))
    while True:
        if seed:
            draw.shuffle(order)
        for place in order:
            yield batches[place]
