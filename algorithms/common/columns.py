"""Networks of R runs whose samples are columns: activations [R, features, B].

For value networks, whose batches are wider than their layers: the last axis is what fills vector registers, and 128
samples fill them where 84 units or 2 outputs do not; a convolution's patches are copied B numbers at a time. The
backward passes are written out, as in `layers`, for some runs at a time (`Part`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms.common.layers import Parameters, Scratch, fan_in_uniform
from algorithms.common.streams import Streams

CACHE = 1 << 22  # bytes of activations; more than L2 holds, as a call that does little costs more than memory does
MOST_RUNS = 16  # of a part

CONVOLUTIONS: dict[str, tuple[tuple[int, int, int], ...]] = {  # filters, kernel, stride
    "none": (),
    "minatar": ((16, 3, 1),),  # kenjyoung/MinAtar@3f078e5 examples/dqn.py
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Nature 518:529, Methods
}


def require_image(convolutions: str, observation_shape: Sequence[int], shape: Sequence[int], kernel: int) -> None:
    """Refuse tasks on whose observations, of which `shape` is what the layers before leave, a kernel does not fit."""
    if len(shape) != 3 or min(shape[:2]) < kernel:
        raise ValueError(
            f"convolutions is {convolutions!r}, but this task's observations are {tuple(observation_shape)}; it"
            " is for images [height, width, channels] no smaller than its kernels: set convolutions to 'none'"
        )


Noise = Mapping[str, tuple[np.ndarray, np.ndarray]]  # by a layer's name: its eps_in [R, in, 1] and eps_out [R, 1, out]


class Part:
    """Some neighbouring runs of `Parameters`: their weights and gradients by name, and noise if there is any."""

    def __init__(self, parameters: Parameters, runs: slice):
        self.runs = runs
        self.weights = {name: view.detach()[runs] for name, view in parameters.views.items()}
        self.grads = {name: view[runs] for name, view in parameters.grads.items()}


class Linear:
    """W^T x + b: [r, in, B] -> [r, out, B]. Weights and biases uniform in +-1/sqrt(in), the default of torch."""

    def __init__(self, name: str, index: int, inputs: int, outputs: int):
        self.weight, self.bias, self.inputs, self.outputs = (
            f"{name}.weight{index}",
            f"{name}.bias{index}",
            inputs,
            outputs,
        )

    @property
    def floats(self) -> int:
        """Numbers that a sample takes in the forward pass."""
        return self.outputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        return {self.weight: (self.inputs, self.outputs), self.bias: (1, self.outputs)}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One run's first weights."""
        weight = fan_in_uniform(rng, self.inputs, self.outputs)
        return {self.weight: weight, self.bias: fan_in_uniform(rng, self.inputs, self.outputs)[:1]}

    def forward(self, part: Part, x: Tensor, noise: Noise | None, scratch: Scratch, hidden: bool) -> Tensor:
        """That of a hidden layer lies in `scratch` and holds until the next call."""
        return self._product(part.weights[self.weight], part.weights[self.bias], x, scratch if hidden else None)

    def _product(self, weight: Tensor, bias: Tensor, x: Tensor, scratch: Scratch | None) -> Tensor:
        bias = bias.transpose(1, 2)
        if self.outputs == 1:  # a sum: as a product it would take another kernel for one run than for several
            return torch.sum(weight * x, 1, keepdim=True) + bias
        out = scratch(f"{self.weight} forward", len(x), self.outputs, x.shape[2], like=x) if scratch else None
        return torch.baddbmm(bias, weight.transpose(1, 2), x, out=out)

    def backward(
        self, part: Part, x: Tensor, delta: Tensor, noise: Noise | None, scratch: Scratch, to_inputs: bool
    ) -> Tensor | None:
        """Writes the gradients of W and b into the part; returns that of x [r, in, B] if it is asked for."""
        self._to_weights(part, x, delta)
        return self._to_inputs(part.weights[self.weight], x, delta, scratch) if to_inputs else None

    def _to_weights(self, part: Part, x: Tensor, delta: Tensor) -> None:
        grad = part.grads[self.weight]
        torch.sum(delta, 2, keepdim=True, out=part.grads[self.bias].transpose(1, 2))
        if self.outputs == 1:
            torch.sum(x * delta, 2, keepdim=True, out=grad)
        elif self.outputs < 16:  # the few outputs as rows: a product with few columns is slow
            grad.copy_(torch.bmm(delta, x.transpose(1, 2)).transpose(1, 2))
        elif grad.is_contiguous():
            torch.bmm(x, delta.transpose(1, 2), out=grad)
        else:  # padding between runs; into it, torch multiplies run by run
            grad.copy_(torch.bmm(x, delta.transpose(1, 2)))

    def _to_inputs(self, weight: Tensor, x: Tensor, delta: Tensor, scratch: Scratch) -> Tensor:
        out = scratch(f"{self.weight} backward", *x.shape, like=x)
        return torch.mul(weight, delta, out=out) if self.outputs == 1 else torch.bmm(weight, delta, out=out)

    def act(self, weights: Mapping[str, np.ndarray], x: np.ndarray, noise: Noise | None) -> np.ndarray:
        """The same in NumPy, samples as rows: [R, B, in] -> [R, B, out]."""
        out: np.ndarray = np.matmul(x, weights[self.weight])
        out += weights[self.bias]
        return out


class NoisyLinear(Linear):
    """(W + S o e)^T x + b + s o e_out, e = e_in e_out^T: factorised Gaussian noise (arXiv:1706.10295, equations 9, 10).

    e_in and e_out are f(normal), f(x) = sign(x) sqrt|x| (equation 11); without noise it is the linear layer of the
    means W and b. W and b are uniform in +-1/sqrt(in), S and s start at 0.5/sqrt(in) (section 3.2). The gradient by S
    is that by the noisy weight, times e.
    """

    def __init__(self, name: str, index: int, inputs: int, outputs: int):
        super().__init__(name, index, inputs, outputs)
        self.sigma = f"{self.weight}.sigma", f"{self.bias}.sigma"  # S and s

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        means = super().shapes()
        return means | {f"{name}.sigma": shape for name, shape in means.items()}

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One run's first weights."""
        means = super().draw(rng)
        return means | {
            f"{name}.sigma": np.full(mean.shape, 0.5 / np.sqrt(self.inputs)) for name, mean in means.items()
        }

    def _noise(self, part: Part, noise: Noise, like: Tensor) -> tuple[Tensor, Tensor]:
        """e_in [r, in, 1] and e_out [r, 1, out]."""
        eps_in, eps_out = (torch.from_numpy(eps[part.runs]).to(like.device) for eps in noise[self.weight])
        return eps_in, eps_out

    def forward(self, part: Part, x: Tensor, noise: Noise | None, scratch: Scratch, hidden: bool) -> Tensor:
        """As `Linear`, with noisy weights where there is noise; they hold until the next call with noise."""
        if noise is None:
            return super().forward(part, x, noise, scratch, hidden)
        eps_in, eps_out = self._noise(part, noise, x)
        weight, bias = (part.weights[name] for name in (self.weight, self.bias))
        sigma, bias_sigma = (part.weights[name] for name in self.sigma)
        noisy = torch.mul(sigma, eps_in, out=scratch(f"{self.weight} noisy", *weight.shape, like=x))
        torch.addcmul(weight, noisy, eps_out, out=noisy)
        return self._product(noisy, torch.addcmul(bias, bias_sigma, eps_out), x, scratch if hidden else None)

    def backward(
        self, part: Part, x: Tensor, delta: Tensor, noise: Noise | None, scratch: Scratch, to_inputs: bool
    ) -> Tensor | None:
        """As `Linear`, for W and b and for S and s; to follow `forward` with the same noise."""
        assert noise is not None, "the gradient is that of a noisy forward pass"
        eps_in, eps_out = self._noise(part, noise, x)
        self._to_weights(part, x, delta)
        for name, sigma in zip((self.weight, self.bias), self.sigma, strict=True):
            torch.mul(part.grads[name], eps_out, out=part.grads[sigma])
        part.grads[self.sigma[0]].mul_(eps_in)
        noisy = scratch(f"{self.weight} noisy", *part.grads[self.weight].shape, like=x)
        return self._to_inputs(noisy, x, delta, scratch) if to_inputs else None

    def act(self, weights: Mapping[str, np.ndarray], x: np.ndarray, noise: Noise | None) -> np.ndarray:
        """The same in NumPy, samples as rows."""
        out = super().act(weights, x, None)
        if noise is not None:
            eps_in, eps_out = noise[self.weight]
            perturbed = np.matmul(x * eps_in.swapaxes(1, 2), weights[f"{self.weight}.sigma"])
            out += (perturbed + weights[f"{self.bias}.sigma"]) * eps_out
        return out


class Convolution(Linear):
    """A convolution as a linear layer on patches: [r, H W C, B] -> [r, F H' W', B], no padding.

    Observations come with the channels last, the outputs of a convolution with the channels first.
    """

    def __init__(
        self, name: str, index: int, shape: tuple[int, int, int], filters: int, kernel: int, stride: int, first: bool
    ):
        height, width, channels = shape
        super().__init__(name, index, kernel * kernel * channels, filters)
        self.shape, self.kernel, self.stride, self.first = shape, kernel, stride, first
        self.out_shape = ((height - kernel) // stride + 1, (width - kernel) // stride + 1, filters)
        self.positions = self.out_shape[0] * self.out_shape[1]

    @property
    def floats(self) -> int:
        """Numbers that a sample takes in the forward pass: its patches and the outputs."""
        return (self.inputs + self.outputs) * self.positions

    def _strides(self, batch: int) -> tuple[int, int, int]:
        """Of height, width and channel, in elements of [H W C, B] or [C H W, B]."""
        height, width, channels = self.shape
        return (width * channels * batch, channels * batch, batch) if self.first else (
            width * batch, batch, height * width * batch
        )  # fmt: skip

    def _patches(self, x: Tensor, scratch: Scratch) -> Tensor:
        """[r, K K C, H' W' B]."""
        runs, features, batch = x.shape
        (h, w, c), (rows, columns, _), k = self._strides(batch), self.out_shape, self.kernel
        windows = x.contiguous().as_strided(
            (runs, k, k, self.shape[2], rows, columns, batch),
            (features * batch, h, w, c, h * self.stride, w * self.stride, 1),
        )
        out = scratch(f"{self.weight} patches", runs, self.inputs, self.positions * batch, like=x)
        out.view(windows.shape).copy_(windows)
        return out

    def forward(self, part: Part, x: Tensor, noise: Noise | None, scratch: Scratch, hidden: bool) -> Tensor:
        """As `Linear` on every patch."""
        out = super().forward(part, self._patches(x, scratch), noise, scratch, hidden)
        return out.view(len(x), self.outputs * self.positions, x.shape[2])

    def backward(
        self, part: Part, x: Tensor, delta: Tensor, noise: Noise | None, scratch: Scratch, to_inputs: bool
    ) -> Tensor | None:
        """As `Linear` on every patch; where patches overlap, the gradients of x add up."""
        runs, features, batch = x.shape
        patches = scratch(f"{self.weight} patches", runs, self.inputs, self.positions * batch, like=x)  # of `forward`
        delta = delta.reshape(runs, self.outputs, -1)
        by_patches = super().backward(part, patches, delta, noise, scratch, to_inputs)
        if by_patches is None:
            return None
        (h, w, c), (rows, columns, _), k = self._strides(batch), self.out_shape, self.kernel
        by_patches = by_patches.view(runs, k, k, self.shape[2], rows, columns, batch)
        out = scratch(f"{self.weight} inputs", *x.shape, like=x).zero_()
        for i in range(k):
            for j in range(k):
                size = (runs, self.shape[2], rows, columns, batch)
                strides = (features * batch, c, h * self.stride, w * self.stride, 1)
                out.as_strided(size, strides, i * h + j * w).add_(by_patches[:, i, j])
        return out

    def act(self, weights: Mapping[str, np.ndarray], x: np.ndarray, noise: Noise | None) -> np.ndarray:
        """The same in NumPy, samples as rows."""
        runs, batch, features = x.shape
        item = x.itemsize
        (h, w, c), (rows, columns, _), k = self._strides(1), self.out_shape, self.kernel
        windows = np.lib.stride_tricks.as_strided(
            np.ascontiguousarray(x),
            (runs, batch, rows, columns, k, k, self.shape[2]),
            [item * s for s in (batch * features, features, h * self.stride, w * self.stride, h, w, c)],
        )
        out = super().act(weights, windows.reshape(runs, -1, self.inputs), noise)
        return out.reshape(runs, batch, self.positions, -1).swapaxes(2, 3).reshape(runs, batch, -1)


def over_actions(by_action: Tensor) -> Tensor:
    """The sum over axis 1 of [r, A, ...], slice by slice: torch's takes twice as long over a short axis."""
    first, *others = by_action.unbind(1)
    total = first + others[0] if others else first.clone()
    for slice_of_one in others[1:]:
        total.add_(slice_of_one)
    return total


class Stack:
    """Layers one after another, ReLU between them, and after the last one too where it is `hidden`."""

    def __init__(self, layers: Sequence[Linear], hidden: bool):
        self.layers, self.hidden = list(layers), hidden

    def forward(self, part: Part, x: Tensor, noise: Noise | None, scratch: Scratch) -> list[Tensor]:
        """Every layer's output, the inputs first: what `backward` needs. Hidden ones hold until the next call."""
        outputs = [x]
        for k, layer in enumerate(self.layers):
            hidden = self.hidden or k < len(self.layers) - 1
            x = layer.forward(part, x, noise, scratch, hidden)
            outputs.append(x.clamp_(min=0) if hidden else x)
        return outputs

    def backward(
        self, part: Part, outputs: list[Tensor], delta: Tensor, noise: Noise | None, scratch: Scratch, to_inputs: bool
    ) -> Tensor | None:
        """Writes the gradients into the part, given d loss / d output; returns that of the inputs if asked for."""
        by_x: Tensor | None = delta
        for k in range(len(self.layers) - 1, -1, -1):
            assert by_x is not None
            if self.hidden or k < len(self.layers) - 1:
                y = outputs[k + 1]
                by_x = torch.ops.aten.threshold_backward.grad_input(by_x, y, 0.0, grad_input=by_x)
            by_x = self.layers[k].backward(part, outputs[k], by_x, noise, scratch, to_inputs or k > 0)  # type: ignore
        return by_x

    def act(self, weights: Mapping[str, np.ndarray], x: np.ndarray, noise: Noise | None) -> np.ndarray:
        """The same in NumPy, samples as rows."""
        for k, layer in enumerate(self.layers):
            x = layer.act(weights, x, noise)
            if self.hidden or k < len(self.layers) - 1:
                x = np.maximum(x, 0, out=x)
        return x


class QNetwork:
    """Action values of R runs, `num_atoms` numbers for each: outputs [R, A * Z, B].

    Convolutions if any, hidden layers, an output layer. With `dueling` (arXiv:1511.06581) the last hidden layer and the
    output layer are there twice, for the state's value and for the advantages, and Q = V + A - mean_a A (equation 9).
    With `noisy` (arXiv:1706.10295) these two layers are noisy, as in the paper's networks.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        num_actions: int,
        hidden_sizes: Sequence[int],
        convolutions: str = "none",
        num_atoms: int = 1,
        dueling: bool = False,
        noisy: bool = False,
        deep_heads: bool = False,
    ):
        self.num_actions, self.num_atoms, self.dueling = num_actions, num_atoms, dueling
        self.scratch = Scratch()
        layers: list[Linear] = []
        shape = tuple(observation_shape)
        for filters, kernel, stride in CONVOLUTIONS[convolutions]:
            require_image(convolutions, observation_shape, shape, kernel)
            convolution = Convolution(
                "q", len(layers), (shape[0], shape[1], shape[2]), filters, kernel, stride, not layers
            )
            layers.append(convolution)
            shape = convolution.out_shape
        sizes = [int(np.prod(shape)), *hidden_sizes]
        deep_heads |= dueling or noisy
        if deep_heads and not hidden_sizes:
            raise ValueError("hidden_sizes is empty; this network needs a hidden layer")
        kind = NoisyLinear if noisy else Linear
        shared = (
            len(sizes) - 1 - deep_heads
        )  # layers before the heads, whose last hidden layer is theirs if they are deep
        for inputs, outputs in itertools.pairwise(sizes[: shared + 1]):
            layers.append(Linear("q", len(layers), inputs, outputs))
        self.body = Stack(layers, hidden=True)
        ends_in = {"q": num_actions * num_atoms}
        if dueling:
            ends_in = {"value": num_atoms, "advantage": num_actions * num_atoms}
        self.heads = []
        for name, size in ends_in.items():
            start = 0 if dueling else len(layers)
            ends = [*sizes[shared:], size]
            head = [kind(name, start + k, ends[k], ends[k + 1]) for k in range(len(ends) - 1)]
            self.heads.append(Stack(head, hidden=False))
        self.layers = [*layers, *(layer for head in self.heads for layer in head.layers)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        return {name: shape for layer in self.layers for name, shape in layer.shapes().items()}

    def initialize(self, parameters: Parameters, rngs: Sequence[np.random.Generator]) -> None:
        """Draw the weights, one generator per run."""
        drawn = [{k: v for layer in self.layers for k, v in layer.draw(rng).items()} for rng in rngs]
        for name in drawn[0]:
            parameters.fill(name, np.stack([one[name] for one in drawn]))

    def parts(self, parameters: Parameters, batch_size: int) -> list[Part]:
        """All runs, as many at a time as the cache holds of their activations for `batch_size` samples."""
        floats = sum(layer.floats for layer in self.layers)
        size = min(max(CACHE // (4 * batch_size * floats), 1), MOST_RUNS)
        return [Part(parameters, slice(r, r + size)) for r in range(0, parameters.num_runs, size)]

    def noise(self, streams: Streams, purpose: str, count: int) -> Iterator[Any]:
        """For `count` passes, fresh noise for every noisy layer, from the runs' own streams; None where none is noisy.

        It is drawn at once, which takes the same numbers from the streams as drawing it pass by pass.
        """
        noisy = [layer for layer in self.layers if isinstance(layer, NoisyLinear)]
        if not noisy:
            return itertools.repeat(None, count)
        drawn = streams.normal(purpose, (count, sum(layer.inputs + layer.outputs for layer in noisy)), axis=1)
        drawn = np.copysign(np.sqrt(np.abs(drawn)), drawn)
        return map(functools.partial(self._by_layer, noisy), drawn)

    @staticmethod
    def _by_layer(noisy: Sequence[Linear], drawn: np.ndarray) -> Noise:
        """The numbers [R, sum of in + out] of one pass as e_in and e_out of every layer."""
        result, start = {}, 0
        for layer in noisy:
            middle, end = start + layer.inputs, start + layer.inputs + layer.outputs
            result[layer.weight] = drawn[:, start:middle, None], drawn[:, None, middle:end]
            start = end
        return result

    @torch.no_grad()
    def forward(self, part: Part, inputs: Tensor, noise: Noise | None = None) -> tuple[Tensor, list[list[Tensor]]]:
        """Outputs [r, A * Z, B] of observations [r, O, B], and what `backward` needs of the way there."""
        body = self.body.forward(part, inputs, noise, self.scratch)
        heads = [head.forward(part, body[-1], noise, self.scratch) for head in self.heads]
        if not self.dueling:
            return heads[0][-1], [body, *heads]
        value, advantages = (head[-1].view(len(inputs), -1, self.num_atoms, inputs.shape[2]) for head in heads)
        centre = over_actions(advantages).mul_(1 / self.num_actions)
        q_values = advantages.add_(value.sub_(centre.unsqueeze(1)))  # nothing else reads what the heads gave
        return q_values.view(len(inputs), -1, inputs.shape[2]), [body, *heads]

    @torch.no_grad()
    def backward(self, part: Part, tape: list[list[Tensor]], delta: Tensor, noise: Noise | None = None) -> None:
        """Writes d loss / d weights into the part's gradients, from `forward`'s tape and d loss / d outputs."""
        body, *heads = tape
        deltas = [delta]
        if self.dueling:
            by_action = delta.view(len(delta), self.num_actions, self.num_atoms, -1)
            by_value = over_actions(by_action)
            centred = by_action - by_value.unsqueeze(1) * (1 / self.num_actions)
            deltas = [by_value, centred.view_as(delta)]
        by_body: Any = None
        through = bool(self.body.layers)
        for head, outputs, by_head in zip(self.heads, heads, deltas, strict=True):
            by_inputs = head.backward(part, outputs, by_head, noise, self.scratch, to_inputs=through)
            by_body = by_inputs if by_body is None else by_body.add_(by_inputs)
        if through:
            self.body.backward(part, body, by_body, noise, self.scratch, to_inputs=False)

    @staticmethod
    def weights_of(parameters: Parameters) -> Callable[[], dict[str, np.ndarray]]:
        """The weights [R, ...] in NumPy, whenever they are asked for; on the CPU it is their own memory."""

        def read() -> dict[str, np.ndarray]:
            return {name: view.detach().cpu().numpy() for name, view in parameters.views.items()}

        shared = read()
        return read if parameters.flat.is_cuda else lambda: shared

    def acting(self, parameters: Parameters) -> Callable[..., np.ndarray]:
        """Outputs [R, B, A, Z] for observations [R, B, ...] and noise: in NumPy on the weights' own memory.

        At acting's sizes a torch call costs more than its arithmetic. It may differ from `forward` in the last bits, so
        what is trained on comes from there. Weights on a GPU are copied at every call.
        """

        weights_of = self.weights_of(parameters)

        def forward(observations: np.ndarray, noise: Noise | None = None) -> np.ndarray:
            weights = weights_of()
            x = self.body.act(weights, observations.reshape(*observations.shape[:2], -1), noise)
            heads = [head.act(weights, x, noise) for head in self.heads]
            heads = [head.reshape(*x.shape[:2], -1, self.num_atoms) for head in heads]
            if not self.dueling:
                return heads[0]
            value, advantages = heads
            q_values: np.ndarray = value + advantages - advantages.mean(2, keepdims=True)
            return q_values

        return forward
