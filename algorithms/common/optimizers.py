"""Optimizers over the flat buffer of R runs: step sizes, clipping and step counts are per run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import Parameters


class Adam:
    """Adam (arXiv:1412.6980, algorithm 1) for R runs at once, by torch's fused kernel.

    Runs that share a step size and a step count are updated in one call; the kernel does the same arithmetic on a
    run's slice as on the whole buffer, so it does not matter which they are.
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
        if max_grad_norm is not None and np.isfinite(max_grad_norm).any():
            self._clip(torch.as_tensor(max_grad_norm, dtype=torch.float32, device=self.parameters.flat.device))
        active = np.ones(self.parameters.num_runs, bool) if active is None else active
        everyone = bool(active.all())
        self.steps = self.steps + active
        alike = (learning_rate == learning_rate[0]).all() and (self.steps == self.steps[0]).all()
        buffers = (self.parameters.flat, self.parameters.grad, self.first_moment, self.second_moment)
        if everyone and alike:
            self._update([[buffer] for buffer in buffers], float(learning_rate[0]), int(self.steps[0]))
            return
        together: dict[tuple[float, int], list[int]] = defaultdict(list)
        for run in np.nonzero(active)[0].tolist():
            together[float(learning_rate[run]), int(self.steps[run])].append(run)
        for (rate, steps), runs in together.items():
            self._update([self.parameters.slices(buffer, runs) for buffer in buffers], rate, steps)

    def _update(self, buffers: list[list[Tensor]], learning_rate: float, steps: int) -> None:
        count = torch.tensor(float(steps), device=self.parameters.flat.device)
        weights, grads, first_moments, second_moments = buffers
        torch._fused_adam_(
            weights,
            grads,
            first_moments,
            second_moments,
            [],
            [count] * len(weights),
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def _clip(self, max_norm: Tensor) -> None:
        views = self.parameters.grads.values()
        norms = torch.stack([torch.linalg.vector_norm(view.flatten(1), dim=1) for view in views], 1)  # [R, segments]
        scale = torch.clamp(max_norm / (torch.linalg.vector_norm(norms, dim=1) + 1e-6), max=1.0)
        for view in views:
            view.mul_(scale.view(-1, *(1,) * (view.ndim - 1)))

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
