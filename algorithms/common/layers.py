"""Networks of R runs as one: weights [R, in, out], all in one flat buffer.

Kept in this file so that algorithm files stay plain: the layout that lets one optimizer call update every run, the
multilayer perceptron with its backward pass written out (a third of autograd's time at these sizes), and a NumPy
forward pass on the same memory for acting. The rules that make a run's numbers independent of its company are:
R leads, no reduction over R, products with one output column have a form of their own (`times_column`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PAD = 16  # floats of a vector register; every run's slice starts at a multiple, so no vector loop ends inside one

Initializer = Callable[[np.random.Generator, int, int], np.ndarray]


class Parameters:
    """Named weights of R runs in one flat float32 buffer `flat` [P]: segment by segment, run by run.

    `views` holds them as [R, *shape], `grad` and `grads` their gradients in the same layout. `buffers` are memory for
    `flat` and `grad` that is there already (see `part`).
    """

    def __init__(
        self,
        num_runs: int,
        shapes: dict[str, tuple[int, ...]],
        device: str = "cpu",
        buffers: tuple[Tensor, Tensor] | None = None,
    ):
        self.num_runs, self.shapes = num_runs, dict(shapes)
        self._sizes = [int(np.prod(shape)) for shape in shapes.values()]
        self._strides = [-(-size // PAD) * PAD for size in self._sizes]
        self._starts = [0, *itertools.accumulate(num_runs * stride for stride in self._strides)]
        zeros = torch.zeros(0 if buffers else self._starts[-1], device=device)
        self.flat, self.grad = buffers or (zeros, torch.zeros_like(zeros))
        self.views, self.grads = self.split(self.flat), self.split(self.grad)
        for view in self.views.values():
            view.requires_grad_()

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Views [R, *shape] into a buffer of this layout."""
        return {
            name: flat[start : start + self.num_runs * stride].view(self.num_runs, stride)[:, :size].unflatten(1, shape)
            for (name, shape), start, stride, size in zip(
                self.shapes.items(), self._starts, self._strides, self._sizes, strict=False
            )
        }

    def part(self, names: Iterable[str]) -> Parameters:
        """Neighbouring segments, named in their order, as parameters of their own on the same memory."""
        names, order = list(names), list(self.shapes)
        first = order.index(names[0])
        assert order[first : first + len(names)] == names
        inside = slice(self._starts[first], self._starts[first + len(names)])
        shapes = {name: self.shapes[name] for name in names}
        return Parameters(self.num_runs, shapes, buffers=(self.flat[inside], self.grad[inside]))

    def slices(self, flat: Tensor, runs: Iterable[int]) -> list[Tensor]:
        """The pieces of a buffer of this layout that belong to some runs, padding included."""
        return [
            flat[start + run * stride : start + (run + 1) * stride]
            for run in runs
            for start, stride in zip(self._starts, self._strides, strict=False)
        ]

    def __getitem__(self, name: str) -> Tensor:
        return self.views[name]

    def backward(self, loss: Tensor) -> None:
        """Fill `grad` with d loss / d parameters. The loss is a sum over runs, which keeps their gradients apart."""
        grads = torch.autograd.grad(loss, list(self.views.values()))
        torch._foreach_copy_(list(self.grads.values()), list(grads))

    def fill(self, name: str, values: np.ndarray) -> None:
        """Set one parameter of all runs from an array [R, *shape]."""
        with torch.no_grad():
            self.views[name].copy_(torch.from_numpy(np.ascontiguousarray(values, np.float32)))

    def copy_(self, other: Parameters) -> None:
        """Take over another's weights (a target network's update)."""
        self.flat.copy_(other.flat)

    @torch.no_grad()
    def lerp_(self, other: Parameters, share: np.ndarray) -> None:
        """Go `share` [R] of the way to another's weights (Polyak averaging); 0 leaves a run as it is."""
        for value in np.unique(share[share != 0]).tolist():
            runs = (share == value).nonzero()[0].tolist()
            if len(runs) == self.num_runs:
                self.flat.lerp_(other.flat, value)
            else:
                torch._foreach_lerp_(self.slices(self.flat, runs), other.slices(other.flat, runs), value)

    def finite(self) -> np.ndarray:
        """Per run, whether every weight is finite: bool [R]."""
        sums = torch.stack([view.detach().flatten(1).abs().sum(1) for view in self.views.values()], 1)
        return torch.isfinite(sums).all(1).cpu().numpy()

    def of_run(self, run: int, prefix: str = "") -> dict[str, np.ndarray]:
        """One run's weights by name."""
        return {prefix + name: view[run].detach().cpu().numpy().copy() for name, view in self.views.items()}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"flat": self.flat.cpu().numpy().copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.flat.copy_(torch.from_numpy(state["flat"]))


def orthogonal(gain: float) -> Initializer:
    """Orthogonal matrix times `gain` (arXiv:1312.6120), by QR of a normal matrix."""

    def draw(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        normal = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(normal)
        q *= np.sign(np.diag(r))
        return gain * (q if rows >= columns else q.T)

    return draw


def normalized_columns(scale: float) -> Initializer:
    """Normal columns scaled to the norm `scale` (openai/baselines@ea25b9e, `normc_initializer`)."""

    def draw(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        normal = rng.standard_normal((rows, columns))
        return scale * normal / np.sqrt((normal**2).sum(0, keepdims=True))

    return draw


def fan_in_uniform(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Uniform in +-1/sqrt(rows), the default of torch's linear layers."""
    return rng.uniform(-1, 1, (rows, columns)) / np.sqrt(rows)


class Scratch:
    """Buffers that are written anew at every use. The same memory again and again stays in the cache."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """The buffer of this name and shape, its contents undefined."""
        key = (name, *shape)
        if key not in self._buffers:
            self._buffers[key] = like.new_empty(shape)
        return self._buffers[key]


class MLP:
    """A multilayer perceptron of R runs; its weights live in a `Parameters` under `<name>.weight0`, `<name>.bias0`, ...

    `activation` is `tanh` or `relu`, on the hidden layers; the last layer is linear.
    """

    def __init__(
        self,
        name: str,
        sizes: Sequence[int],
        activation: str = "tanh",
        scratch: Scratch | None = None,
        front: Sequence[tuple[int, int]] = (),  # rows and columns of the weights before these layers; see `images`
    ):
        self.name, self.sizes, self.activation = name, tuple(sizes), activation
        self.scratch = scratch or Scratch()
        self.matrices = [*front, *itertools.pairwise(self.sizes)]
        self.positions = [1] * len(self.matrices)  # at which every layer stands in one sample
        layers = range(len(self.matrices))
        self._names = [f"{name}.{kind}{layer}" for layer in layers for kind in ("weight", "bias")]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        result: dict[str, tuple[int, ...]] = {}
        for layer, (inputs, outputs) in enumerate(self.matrices):
            result[f"{self.name}.weight{layer}"] = (inputs, outputs)
            result[f"{self.name}.bias{layer}"] = (1, outputs)
        return result

    def initialize(
        self,
        parameters: Parameters,
        rngs: Iterable[np.random.Generator],
        hidden: Initializer,
        last: Initializer,
        bias: Initializer | None = None,
    ) -> None:
        """Draw the weights, one generator per run; biases are zero unless an initializer is given."""
        layers = len(self.matrices)
        draws: dict[str, list[np.ndarray]] = {}
        for rng in rngs:
            for layer, (inputs, outputs) in enumerate(self.matrices):
                draw = last if layer == layers - 1 else hidden
                draws.setdefault(f"weight{layer}", []).append(draw(rng, inputs, outputs))
                if bias is not None:
                    draws.setdefault(f"bias{layer}", []).append(bias(rng, inputs, outputs)[:1])
        for name, values in draws.items():
            parameters.fill(f"{self.name}.{name}", np.stack(values))

    def _weights(self, parameters: Parameters | Mapping[str, Tensor]) -> list[Tensor]:
        return [parameters[name] for name in self._names]

    def __call__(self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs [R, B, out] of inputs [R, B, in], differentiable by autograd."""
        return _MLPFunction.apply(inputs, self.activation, *self._weights(parameters))

    @torch.no_grad()
    def forward(self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor) -> list[Tensor]:
        """Every layer's output, the inputs first and the network's output last: what `backward` needs.

        Hidden layers lie in `scratch`: they hold until the next `forward` of a network that shares it.
        """
        return _forward(inputs, self.activation, self._weights(parameters), self.scratch)

    @torch.no_grad()
    def backward(self, parameters: Parameters, layers: list[Tensor], delta: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`; `layers` from `forward`, `delta` is d loss / d outputs."""
        grads = [parameters.grads[name] for name in self._names]
        _backward(layers[:-1], self._weights(parameters)[::2], self.activation, delta, grads, scratch=self.scratch)

    @torch.no_grad()
    def to_inputs(self, parameters: Parameters | Mapping[str, Tensor], layers: list[Tensor], delta: Tensor) -> Tensor:
        """d loss / d inputs [R, B, in], weights held fixed; the arguments are those of `backward`.

        The result lies in `scratch`: it holds until the next backward pass.
        """
        weights = self._weights(parameters)[::2]
        by_inputs = _backward(layers[:-1], weights, self.activation, delta, None, True, self.scratch)
        assert by_inputs is not None
        return by_inputs

    @torch.no_grad()
    def deltas(self, parameters: Parameters, layers: list[Tensor], delta: Tensor) -> list[Tensor]:
        """d loss / d (each layer's sums, before its activation), [R, B, out]; arguments as `backward`'s."""
        weights, result = self._weights(parameters)[::2], [delta]
        for k in range(len(weights) - 1, 0, -1):
            result.insert(0, linear_to_inputs(result[0], weights[k], layers[k], self.activation))
        return result

    def operands(self, layers: list[Tensor]) -> list[Tensor]:
        """What every layer's weight is multiplied with, [R, B, in]; `layers` from `forward`."""
        return layers[:-1]

    @torch.no_grad()
    def tangent(self, parameters: Parameters, layers: list[Tensor], direction: Mapping[str, Tensor]) -> Tensor:
        """Derivative of the outputs [R, B, out] when the weights move along `direction` (by name, [R, *shape]).

        `layers` come from `forward`. The result lies in `scratch`: it holds until the next call.
        """
        return _tangent(layers, self._weights(parameters), self._weights(direction), self.activation, self.scratch)

    def acting(self, parameters: Parameters) -> Callable[[np.ndarray], np.ndarray]:
        """The same function from and to NumPy: float32 [R, B, in] -> [R, B, out], without gradients.

        On the CPU it is computed in NumPy on the weights' own memory: at acting's sizes a torch call costs more than
        its arithmetic. It may differ from `__call__` in the last bits, so what is trained on comes from `__call__`.
        """
        if parameters.flat.is_cuda:

            def on_device(x: np.ndarray) -> np.ndarray:
                with torch.no_grad():
                    return self(parameters, torch.from_numpy(x).to(parameters.flat.device)).cpu().numpy()

            return on_device
        weights = [weight.detach().numpy() for weight in self._weights(parameters)]
        pairs = list(zip(weights[::2], weights[1::2], strict=True))
        relu = self.activation == "relu"

        def forward(x: np.ndarray) -> np.ndarray:
            for weight, bias in pairs[:-1]:
                x = np.matmul(x, weight)
                x += bias
                x = np.maximum(x, 0, out=x) if relu else np.tanh(x, out=x)
            return np.matmul(x, pairs[-1][0]) + pairs[-1][1]

        return forward


def linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """x [R, B, in] times weight [R, in, out] plus bias [R, 1, out]."""
    if weight.shape[2] == 1:
        return times_column(x, weight) + bias
    return torch.baddbmm(bias, x, weight, out=out)


def times_column(x: Tensor, column: Tensor) -> Tensor:
    """x [R, M, K] times column [R, K, 1]: [R, M, 1].

    torch's product takes another kernel for R = 1 than for R > 1 there, so it is a sum of products. Where no gradient
    is wanted NumPy multiplies run by run, a matrix with a vector, in a fifth of the time of the sum.
    """
    if x.is_cuda or (torch.is_grad_enabled() and (x.requires_grad or column.requires_grad)):
        return (x * column.transpose(1, 2)).sum(-1, keepdim=True)
    return torch.from_numpy(np.matmul(x.detach().numpy(), column.detach().numpy()))


def tanh_(x: Tensor) -> Tensor:
    """In-place tanh; NumPy's is vectorised on every CPU, torch's only on some."""
    if x.is_cuda:
        return x.tanh_()
    array = x.numpy()
    np.tanh(array, out=array)
    return x


def _forward(
    inputs: Tensor, activation: str, weights: Sequence[Tensor], scratch: Scratch | None = None
) -> list[Tensor]:
    layers = [inputs]
    last = len(weights) - 2
    for k in range(0, len(weights), 2):
        hidden, width = k < last, weights[k].shape[2]
        out = scratch(f"layer{k}", *inputs.shape[:2], width, like=inputs) if scratch and hidden and width > 1 else None
        x = linear(layers[-1], weights[k], weights[k + 1], out)
        if hidden:
            x = tanh_(x) if activation == "tanh" else x.clamp_(min=0)
        layers.append(x)
    return layers


def _backward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    activation: str,
    delta: Tensor,
    grads: Sequence[Tensor] | None,
    to_inputs: bool = False,
    scratch: Scratch | None = None,
) -> Tensor | None:
    """Write the gradients of weights and biases into `grads`, if there are any; `inputs` are each layer's. Returns that
    of the first layer's inputs if it is asked for."""
    for k in range(len(weights) - 1, -1, -1):
        x, weight = inputs[k], weights[k]
        if grads is not None:
            linear_to_weights(x, delta, grads[2 * k], grads[2 * k + 1])
        if k == 0 and not to_inputs:
            return None
        out = scratch(f"delta{k % 2}", *x.shape, like=x) if scratch else None
        delta = linear_to_inputs(delta, weight, x, activation if k > 0 else None, out)
    return delta


def linear_to_weights(x: Tensor, delta: Tensor, by_weight: Tensor, by_bias: Tensor) -> None:
    """Write d loss / d W and d loss / d b, given d loss / d (x W + b)."""
    torch.sum(delta, 1, keepdim=True, out=by_bias)
    if delta.shape[2] == 1:
        by_weight.copy_(times_column(x.transpose(1, 2), delta))
    else:
        torch.bmm(x.transpose(1, 2), delta, out=by_weight)


def linear_to_inputs(
    delta: Tensor, weight: Tensor, x: Tensor, activation: str | None, out: Tensor | None = None
) -> Tensor:
    """From d loss / d (x W) to that by x, or by the sums whose activation x is."""
    if weight.shape[2] == 1:
        delta = torch.mul(delta, weight.transpose(1, 2), out=out)
    else:
        delta = torch.bmm(delta, weight.transpose(1, 2), out=out)
    if activation == "tanh":  # x is the activation's output, from which its derivative follows
        torch.ops.aten.tanh_backward.grad_input(delta, x, grad_input=delta)
    elif activation == "relu":
        torch.ops.aten.threshold_backward.grad_input(delta, x, 0.0, grad_input=delta)
    return delta


def _tangent(
    layers: Sequence[Tensor],
    weights: Sequence[Tensor],
    direction: Sequence[Tensor],
    activation: str,
    scratch: Scratch,
) -> Tensor:
    """Forward-mode derivative along `direction`, layer by layer: (x W + b)' = x W' + b' + x' W."""
    moved = None
    for k in range(0, len(weights), 2):
        x, y = layers[k // 2], layers[k // 2 + 1]
        out = scratch(f"tangent{k}", *y.shape, like=y) if y.shape[2] > 1 else None
        change = linear(x, direction[k], direction[k + 1], out)
        if moved is not None:
            change = linear(moved, weights[k], change, out)
        if k < len(weights) - 2:  # y is the activation's output, from which its derivative follows
            if activation == "tanh":
                torch.ops.aten.tanh_backward.grad_input(change, y, grad_input=change)
            else:
                torch.ops.aten.threshold_backward.grad_input(change, y, 0.0, grad_input=change)
        moved = change
    assert moved is not None
    return moved


class _MLPFunction(torch.autograd.Function):
    """The same two passes for autograd."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, activation: str, *weights: Tensor) -> Tensor:
        *layers, outputs = _forward(inputs, activation, weights)
        ctx.save_for_backward(*layers, *weights)
        ctx.activation = activation
        return outputs

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        depth = len(ctx.saved_tensors) // 3
        inputs, weights = ctx.saved_tensors[:depth], ctx.saved_tensors[depth:]
        grads = [torch.empty_like(weight) for weight in weights]
        delta = _backward(inputs, weights[::2], ctx.activation, delta, grads, ctx.needs_input_grad[0])  # type: ignore
        return (delta, None, *grads)
