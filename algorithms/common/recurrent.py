"""A layer of memory for R runs as one: the LSTM of Hochreiter and Schmidhuber 1997 with the forget gate of Gers,
Schmidhuber and Cummins 2000, forwards over T steps and backwards through time, written out as the perceptron's passes
are (`layers.MLP`) and by the same rules.

What an environment's memory carries from step to step is one array, its `carry` [R, N, 2H]: H outputs h, then H cells
c. It is zero where an episode begins. The three uses:

    remember = lstm.acting(parameters)                            # one step, in NumPy, for acting
    carry = remember(inputs, blank_where(starts, carry))          # [R, N, I], [R, N], [R, N, 2H] -> [R, N, 2H]
    unrolled = lstm.forward(parameters, inputs, carry, starts)    # T steps, for learning; `carry` from before the first
    by_inputs = lstm.backward(parameters, unrolled, by_outputs)   # writes the weights' gradients

Inputs and outputs of a rollout are [R, T*N, ...], time before environments, as `rollouts.by_run` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import Initializer, Parameters, tanh_


class Unrolled(NamedTuple):
    """T steps of an LSTM in N environments: what `backward` needs; entries [R, T, N, ...]."""

    inputs: Tensor  # [R, T*N, I]
    kept: Tensor  # 0.0 where an episode begins, else 1.0; [R, T, N, 1]
    hidden: Tensor  # h of the step before, zero where an episode begins
    cells: Tensor  # c of the step before, likewise
    gates: Tensor  # o, i, f and g after their activations, 4H wide
    carries: Tensor  # h and c after each step, before any reset, 2H wide
    squashed: Tensor  # tanh(c)

    @property
    def outputs(self) -> Tensor:
        """h after each step, [R, T*N, H]."""
        return self.carries[..., : self.hidden.shape[-1]].flatten(1, 2)


class LSTM:
    """H cells for R runs; the weights live in a `Parameters` under `<name>.inputs`, `<name>.hidden`, `<name>.bias`.

        o, i, f = sigmoid(x W + h U + b),  g = tanh(x W + h U + b),   c' = f c + i g,   h' = o tanh(c'),

    W [R, I, 4H], U [R, H, 4H] and b [R, 1, 4H] hold the columns of o, i, f and g in this order. No weight looks at the
    cells (no peepholes), as in torch.nn.LSTM, whose two biases are one here.
    """

    def __init__(self, name: str, num_inputs: int, size: int):
        self.name, self.num_inputs, self.size = name, num_inputs, size
        self._names = [f"{name}.{kind}" for kind in ("inputs", "hidden", "bias")]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        rows = (self.num_inputs, self.size, 1)
        return {name: (count, 4 * self.size) for name, count in zip(self._names, rows, strict=True)}

    def initialize(self, parameters: Parameters, rngs: Iterable[np.random.Generator], draw: Initializer) -> None:
        """Draw both matrices, each whole, one generator per run; biases are zero."""
        drawn = [[draw(rng, rows, 4 * self.size) for rows in (self.num_inputs, self.size)] for rng in rngs]
        for name, values in zip(self._names, zip(*drawn, strict=True), strict=False):
            parameters.fill(name, np.stack(values))

    def _weights(self, parameters: Parameters | Mapping[str, Tensor]) -> list[Tensor]:
        return [parameters[name] for name in self._names]

    def blank(self, num_runs: int, num_envs: int) -> np.ndarray:
        """The carry [R, N, 2H] of episodes that begin."""
        return np.zeros((num_runs, num_envs, 2 * self.size), np.float32)

    @torch.no_grad()
    def forward(
        self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor, carry: Tensor, starts: Tensor
    ) -> Unrolled:
        """T steps from `carry` [R, N, 2H] with `inputs` [R, T*N, I]; `starts` bool [R, T, N] is True where a step is
        the first of its episode. With T = 1 the N may as well be samples of a batch, each with a carry of its own."""
        weight, recurrence, bias = self._weights(parameters)
        (runs, steps, envs), size = starts.shape, self.size
        gates = torch.baddbmm(bias, inputs, weight).view(runs, steps, envs, 4 * size)
        hidden, cells, squashed = gates.new_empty(3, runs, steps, envs, size)
        carries = gates.new_empty(runs, steps, envs, 2 * size)
        kept = (~starts).to(gates.dtype).unsqueeze(-1)
        for t in range(steps):
            gate, keep = gates[:, t], kept[:, t]
            torch.mul(carry[..., :size], keep, out=hidden[:, t])
            torch.mul(carry[..., size:], keep, out=cells[:, t])
            gate += torch.bmm(hidden[:, t], recurrence)
            sigmoids = gate[..., : 3 * size]
            sigmoids *= 0.5  # sigmoid(x) = (1 + tanh(x / 2)) / 2: one tanh for all four, NumPy's fast one
            tanh_(gate)
            sigmoids *= 0.5
            sigmoids += 0.5
            o, i, f, g = gate.split(size, -1)
            carry = carries[:, t]
            torch.add(f * cells[:, t], i * g, out=carry[..., size:])
            squashed[:, t] = carry[..., size:]
            torch.mul(o, tanh_(squashed[:, t]), out=carry[..., :size])
        return Unrolled(inputs, kept, hidden, cells, gates, carries, squashed)

    @torch.no_grad()
    def backward(self, parameters: Parameters, unrolled: Unrolled, by_outputs: Tensor) -> Tensor:
        """Write d loss / d weights into `parameters.grads`, given d loss / d outputs [R, T*N, H]; returns that of the
        inputs, [R, T*N, I].

        Back from the last step, with h' = o tanh(c') and c' = f c + i g, and sums' derivatives o (1 - o), 1 - g^2, ...:

            dh' += (d sums) U^T of the step after,   dc' = dh' o (1 - tanh(c')^2) + dc f of the step after;

        both end where an episode begins. Nothing flows into the carry that the rollout began with.
        """
        weight, recurrence, _ = self._weights(parameters)
        by_weight, by_recurrence, by_bias = (parameters.grads[name] for name in self._names)
        size, squashed, kept = self.size, unrolled.squashed, unrolled.kept
        runs, steps, envs = kept.shape[:3]
        o, i, f, g = unrolled.gates.split(size, -1)
        # Everything that does not wait for the step after, at once: d sums = factors times (dh', dc', dc', dc').
        factors = unrolled.gates * (1 - unrolled.gates)
        factors[..., 3 * size :] = 1 - g.square()
        for factor, other in zip(factors.split(size, -1), (squashed, g, unrolled.cells, i), strict=True):
            factor *= other
        to_cells, through = o * (1 - squashed.square()), f * kept
        recurrence, later = recurrence.transpose(1, 2), by_outputs.view(runs, steps, envs, size)
        by_hidden, by_cells = by_outputs.new_zeros(2, runs, envs, size)
        for t in range(steps - 1, -1, -1):
            by_sums = factors[:, t]  # becomes d loss / d sums
            by_hidden = by_hidden + later[:, t]
            by_cells = by_cells + by_hidden * to_cells[:, t]
            by_sums[..., :size] *= by_hidden
            by_sums[..., size:].unflatten(-1, (3, size)).mul_(by_cells.unsqueeze(-2))
            by_cells = by_cells * through[:, t]
            by_hidden = torch.bmm(by_sums, recurrence) * kept[:, t]
        by_sums = factors.flatten(1, 2)
        torch.bmm(unrolled.inputs.transpose(1, 2), by_sums, out=by_weight)
        torch.bmm(unrolled.hidden.flatten(1, 2).transpose(1, 2), by_sums, out=by_recurrence)
        torch.sum(by_sums, 1, keepdim=True, out=by_bias)
        return torch.bmm(by_sums, weight.transpose(1, 2))

    def acting(self, parameters: Parameters) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """One step from and to NumPy, without gradients: (inputs [R, N, I], carry [R, N, 2H]) -> carry, whose first H
        are the outputs. In NumPy on the weights' own memory on the CPU, for the reason given at `MLP.acting`."""
        size = self.size
        if parameters.flat.is_cuda:

            def on_device(inputs: np.ndarray, carry: np.ndarray) -> np.ndarray:
                x, before = (torch.from_numpy(array).to(parameters.flat.device) for array in (inputs, carry))
                starts = torch.zeros(len(x), 1, x.shape[1], dtype=torch.bool, device=x.device)
                return self.forward(parameters, x, before, starts).carries[:, 0].cpu().numpy()

            return on_device
        weight, recurrence, bias = (tensor.detach().numpy() for tensor in self._weights(parameters))

        def step(inputs: np.ndarray, carry: np.ndarray) -> np.ndarray:
            gates = np.matmul(inputs, weight)
            gates += np.matmul(carry[..., :size], recurrence)
            gates += bias
            sigmoids = gates[..., : 3 * size]
            sigmoids *= 0.5
            np.tanh(gates, out=gates)
            sigmoids *= 0.5
            sigmoids += 0.5
            o, i, f, g = (gates[..., k * size : (k + 1) * size] for k in range(4))
            after = np.empty_like(carry)
            cells = after[..., size:]
            np.add(f * carry[..., size:], i * g, out=cells)
            np.multiply(o, np.tanh(cells), out=after[..., :size])
            return after

        return step


def blank_where(starts: np.ndarray, carry: np.ndarray) -> np.ndarray:
    """The carry [R, N, 2H], zero where an episode begins: `starts` bool [R, N]."""
    return np.where(starts[..., None], np.float32(0), carry)
