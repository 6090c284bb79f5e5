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

from algorithms.common.layers import Initializer, Parameters


class Unrolled(NamedTuple):
    """T steps of an LSTM in N environments: what `backward` needs; entries [R, T, N, ...]."""

    inputs: Tensor  # [R, T*N, I]
    starts: Tensor  # bool [R, T, N]
    before: Tensor  # h and c of the step before, zero where an episode begins, 2H wide
    gates: Tensor  # o, i, f and g after their activations, 4H wide
    carries: Tensor  # h and c after each step, before any reset, 2H wide
    squashed: Tensor  # tanh(c)

    @property
    def outputs(self) -> Tensor:
        """h after each step, [R, T*N, H]."""
        return self.carries[..., : self.squashed.shape[-1]].flatten(1, 2)


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

    @torch.no_grad()
    def forward(
        self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor, carry: Tensor, starts: Tensor
    ) -> Unrolled:
        """T steps from `carry` [R, N, 2H] with `inputs` [R, T*N, I]; `starts` bool [R, T, N] is True where a step is
        the first of its episode. With T = 1 the N may as well be samples of a batch, each with a carry of its own."""
        weight, recurrence, bias = self._weights(parameters)
        (runs, steps, envs), size = starts.shape, self.size
        gates = torch.baddbmm(bias, inputs, weight).view(runs, steps, envs, 4 * size)
        carries = gates.new_empty(runs, steps, envs, 2 * size)
        squashed = gates.new_empty(runs, steps, envs, size)
        kept, half = (~starts).to(gates.dtype).unsqueeze(-1), gates.new_tensor(0.5)
        sigmoids = gates[..., : 3 * size]
        parts = (gates, sigmoids, *gates.split(size, -1), carries, *carries.split(size, -1), squashed, kept)
        first = carry = carry.contiguous()
        hidden, cells = carry.split(size, -1)
        for reset, views in _by_step(starts, *parts):
            gate, sigmoid, o, i, f, g, after, next_hidden, next_cells, squash, keep = views
            if reset:  # in the layout that they have without one, on which a product's bits may depend
                hidden, cells = (carry * keep).split(size, -1)
            gate += torch.bmm(hidden, recurrence)
            sigmoid *= half  # sigmoid(x) = (1 + tanh(x / 2)) / 2: one tanh for all four, NumPy's fast one
            _tanh(gate, gate)
            torch.add(half, sigmoid, alpha=0.5, out=sigmoid)  # halves are exact: no other bits where it is fused
            torch.add(f * cells, i * g, out=next_cells)
            _tanh(next_cells, squash)
            torch.mul(o, squash, out=next_hidden)
            carry, hidden, cells = after, next_hidden, next_cells
        before = torch.cat((first.unsqueeze(1), carries[:, :-1]), 1) * kept
        return Unrolled(inputs, starts, before, gates, carries, squashed)

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
        size, squashed = self.size, unrolled.squashed
        hidden, cells = unrolled.before.split(size, -1)
        o, i, f, g = unrolled.gates.split(size, -1)
        # Everything that does not wait for the step after, at once: d sums = factors times (dh', dc', dc', dc').
        factors = unrolled.gates * (1 - unrolled.gates)
        factors[..., 3 * size :] = 1 - g.square()
        for factor, other in zip(factors.split(size, -1), (squashed, g, cells, i), strict=True):
            factor *= other
        kept = (~unrolled.starts).to(factors.dtype).unsqueeze(-1)
        through_output, through_cells = factors[..., :size], factors[..., size:].unflatten(-1, (3, size))
        later = by_outputs.unflatten(1, unrolled.starts.shape[1:])
        parts = (factors, through_output, through_cells, later, o * (1 - squashed.square()), f * kept, kept)
        backwards = recurrence.transpose(1, 2)
        by_hidden, by_cells = torch.zeros_like(unrolled.before[:, 0]).split(size, -1)
        for reset, views in reversed(_by_step(unrolled.starts, *parts)):
            by_sums, of_output, of_cells, after, to_cells, forget, keep = views
            by_hidden = by_hidden + after
            by_cells = by_cells + by_hidden * to_cells
            of_output *= by_hidden
            of_cells *= by_cells.unsqueeze(-2)  # `by_sums` is d loss / d sums now
            by_cells = by_cells * forget
            by_hidden = torch.bmm(by_sums, backwards)
            if reset:
                by_hidden *= keep
        by_sums = factors.flatten(1, 2)
        torch.bmm(unrolled.inputs.transpose(1, 2), by_sums, out=by_weight)
        torch.bmm(hidden.flatten(1, 2).transpose(1, 2), by_sums, out=by_recurrence)
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


def _by_step(starts: Tensor, *parts: Tensor) -> list[tuple[bool, tuple[Tensor, ...]]]:
    """For each of T steps, whether any episode begins there, and views of the parts [R, T, N, ...]: made all at once,
    since one by one they would cost as much as the arithmetic."""
    resets = starts.flatten(2).any(2).any(0).tolist()
    views = zip(*(part.unbind(1) for part in parts), strict=True)
    return list(zip(resets, views, strict=True))


def _tanh(x: Tensor, out: Tensor) -> None:
    """tanh into `out`, which may be x; see `layers.tanh_`."""
    if x.is_cuda:
        torch.tanh(x, out=out)
    else:
        np.tanh(x.numpy(), out=out.numpy())


def blank_where(starts: np.ndarray, carry: np.ndarray) -> np.ndarray:
    """The carry [R, N, 2H], zero where an episode begins: `starts` bool [R, N]."""
    return np.where(starts[..., None], np.float32(0), carry)
