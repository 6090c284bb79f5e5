"""Optimizers over the flat buffer of R runs: step sizes, clipping and step counts are per run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import Parameters


def clip_norms(parameters: Parameters, max_grad_norm: np.ndarray) -> None:
    """Scale each run's gradient to a norm of at most `max_grad_norm` [R] over all of its parameters; inf: no bound."""
    if not np.isfinite(max_grad_norm).any():
        return
    max_norm = torch.as_tensor(max_grad_norm, dtype=torch.float32, device=parameters.flat.device)
    views = parameters.grads.values()
    norms = torch.stack([torch.linalg.vector_norm(view.flatten(1), dim=1) for view in views], 1)  # [R, segments]
    scale = torch.clamp(max_norm / (torch.linalg.vector_norm(norms, dim=1) + 1e-6), max=1.0)
    for view in views:
        view.mul_(scale.view(-1, *(1,) * (view.ndim - 1)))


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
        if max_grad_norm is not None:
            clip_norms(self.parameters, max_grad_norm)
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


class RMSProp:
    """RMSProp without momentum for R runs at once, g the gradient:

        s <- decay s + (1 - decay) g^2;   theta <- theta - learning_rate g / sqrt(s + eps).

    So it is in arXiv:1602.01783 (section 4, "Optimization") and in TensorFlow, hence in openai/baselines@ea25b9e a2c,
    where s starts at 1 (`start`). With `inside_root` False the divisor is sqrt(s) + eps, as in torch.

    Every operation below rounds once, so a run's bits do not depend on where its slice lies: sums and products in one
    call would be fused in the vector loop and not in its rest.
    """

    def __init__(
        self,
        parameters: Parameters,
        epsilon: float,
        decay: float = 0.99,
        inside_root: bool = True,
        start: float = 0.0,
        mean_square: Tensor | None = None,  # memory for s that is there already, and filled
    ):
        self.parameters, self.epsilon, self.decay, self.inside_root = parameters, epsilon, decay, inside_root
        self.mean_square = torch.full_like(parameters.flat, start) if mean_square is None else mean_square
        self._rates = torch.zeros_like(parameters.flat)
        self._filled = np.full(parameters.num_runs, np.nan)  # the step sizes that are in `_rates`

    @torch.no_grad()
    def step(
        self,
        learning_rate: np.ndarray,
        max_grad_norm: np.ndarray | None = None,
        active: np.ndarray | None = None,
    ) -> None:
        """One update with the gradient in `parameters.grad`; the arguments are those of `Adam.step`."""
        if max_grad_norm is not None:
            clip_norms(self.parameters, max_grad_norm)
        if not np.array_equal(learning_rate, self._filled):
            self._spread(learning_rate, self._rates)
            self._filled = learning_rate.copy()
        weights, grad = self.parameters.flat, self.parameters.grad
        masked = active is not None and not active.all()
        kept = (self.mean_square.clone(), weights.clone()) if masked else ()
        self.mean_square.mul_(self.decay).add_(grad.square().mul_(1 - self.decay))
        if self.inside_root:
            root = (self.mean_square + self.epsilon).sqrt_()
        else:
            root = self.mean_square.sqrt().add_(self.epsilon)
        weights.sub_((self._rates * grad).div_(root))
        if active is not None and masked:
            moves = self._spread(active, torch.zeros_like(grad, dtype=torch.bool))
            for present, before in zip((self.mean_square, weights), kept, strict=True):
                present.copy_(torch.where(moves, present, before))

    def _spread(self, values: np.ndarray, flat: Tensor) -> Tensor:
        """Each run's value [R] at all of its places in a buffer of the parameters' layout."""
        column = torch.from_numpy(values).to(flat)
        for view in self.parameters.split(flat).values():
            view.copy_(column.view(-1, *(1,) * (view.ndim - 1)).expand(view.shape))
        return flat

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"mean_square": self.mean_square.cpu().numpy().copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.mean_square.copy_(torch.from_numpy(state["mean_square"]))


def rmsprop_or_adam(parameters: Parameters, cfg: Any) -> RMSProp | Adam:
    """The one that A2C's settings name."""
    if cfg.optimizer == "adam":
        return Adam(parameters, cfg.optimizer_epsilon)
    start, inside = cfg.rmsprop_start, cfg.epsilon_inside_root
    return RMSProp(parameters, cfg.optimizer_epsilon, cfg.rmsprop_decay, inside, start)
