"""Optimizers over the flat buffer of R runs: step sizes, clipping and step counts are per run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import Parameters


class Adam:
    """Adam (arXiv:1412.6980, the efficient form at the end of its section 2) for R runs at once.

    Whatever differs between runs multiplies by one rounding per element, so that a run gets the same bits whether
    the others share its step size (one scalar for all) or not (a column [R]).
    """

    def __init__(self, parameters: Parameters, epsilon: float = 1e-8, betas: tuple[float, float] = (0.9, 0.999)):
        self.parameters, self.epsilon, self.betas = parameters, epsilon, betas
        self.first_moment = torch.zeros_like(parameters.flat)
        self.second_moment = torch.zeros_like(parameters.flat)
        self.steps = np.zeros(parameters.num_runs, np.int64)

    @torch.no_grad()
    def step(
        self,
        learning_rate: np.ndarray,
        max_grad_norm: np.ndarray | None = None,
        active: np.ndarray | None = None,
    ) -> None:
        """One update with the gradient in `parameters.grad`.

        `learning_rate` [R]; `max_grad_norm` [R] bounds each run's gradient norm (inf: no bound); where `active` [R] is
        False a run's weights, moments and step count stay as they are.
        """
        parameters = self.parameters
        if max_grad_norm is not None and np.isfinite(max_grad_norm).any():
            self._clip(torch.as_tensor(max_grad_norm, dtype=torch.float32, device=parameters.flat.device))
        masked = active is not None and not active.all()
        before = [x.clone() for x in (parameters.flat, self.first_moment, self.second_moment)] if masked else []

        beta1, beta2 = self.betas
        steps = self.steps + 1
        correction = np.sqrt(1 - beta2**steps)
        self.first_moment.lerp_(parameters.grad, 1 - beta1)
        self.second_moment.mul_(beta2).addcmul_(parameters.grad, parameters.grad, value=1 - beta2)
        denominator = self.second_moment.sqrt()
        self._per_run("add_", denominator, self.epsilon * correction)
        update = torch.div(self.first_moment, denominator, out=denominator)
        self._per_run("mul_", update, learning_rate * correction / (1 - beta1**steps))
        parameters.flat.sub_(update)

        if masked:
            assert active is not None
            self._restore(before, active)
            steps = np.where(active, steps, self.steps)
        self.steps = steps

    def _per_run(self, operation: str, flat: Tensor, values: np.ndarray) -> None:
        """Add to, or multiply, each run's elements by its value; the same bits for one scalar and for a column."""
        values = values.astype(np.float32)
        if (values == values[0]).all():
            getattr(flat, operation)(float(values[0]))
            return
        column = torch.from_numpy(values).to(flat.device)
        for view in self.parameters.split(flat).values():
            getattr(view, operation)(column.view(-1, *(1,) * (view.ndim - 1)))

    def _clip(self, max_norm: Tensor) -> None:
        views = self.parameters.split(self.parameters.grad).values()
        norms = torch.stack([torch.linalg.vector_norm(view.flatten(1), dim=1) for view in views], 1)  # [R, segments]
        scale = torch.clamp(max_norm / (torch.linalg.vector_norm(norms, dim=1) + 1e-6), max=1.0)
        for view in views:
            view.mul_(scale.view(-1, *(1,) * (view.ndim - 1)))

    def _restore(self, before: list[Tensor], active: np.ndarray) -> None:
        keep = torch.from_numpy(active).to(self.parameters.flat.device)
        for old, new in zip(before, (self.parameters.flat, self.first_moment, self.second_moment), strict=True):
            for old_view, view in zip(
                self.parameters.split(old).values(), self.parameters.split(new).values(), strict=True
            ):
                view.copy_(torch.where(keep.view(-1, *(1,) * (view.ndim - 1)), view, old_view))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "first_moment": self.first_moment.cpu().numpy().copy(),
            "second_moment": self.second_moment.cpu().numpy().copy(),
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.first_moment.copy_(torch.from_numpy(state["first_moment"]))
        self.second_moment.copy_(torch.from_numpy(state["second_moment"]))
        self.steps = state["steps"].copy()
