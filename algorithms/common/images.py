"""Networks of R runs that see images, samples as rows: convolutions, then a perceptron, as `layers.MLP`.

For the networks of policy-gradient algorithms. What a value network makes of images is in `columns`, whose samples are
columns: made for its one large batch after another; here are the passes, layer by layer, that K-FAC asks for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from algorithms.common.columns import CONVOLUTIONS, require_image
from algorithms.common.layers import MLP, Parameters, linear, linear_to_inputs, linear_to_weights


class Window:
    """Where a convolution's kernel stands on images [height, width, channels], without padding."""

    def __init__(self, shape: tuple[int, int, int], kernel: int, stride: int):
        self.shape, self.kernel, self.stride = shape, kernel, stride
        self.rows, self.columns = ((size - kernel) // stride + 1 for size in shape[:2])
        self.inputs = kernel * kernel * shape[2]

    def patches(self, x: Tensor) -> Tensor:
        """[R, B, H W C] -> [R, B P, K K C], P the positions, row by row."""
        windows = x.unflatten(2, self.shape).unfold(2, self.kernel, self.stride).unfold(3, self.kernel, self.stride)
        return windows.permute(0, 1, 2, 3, 5, 6, 4).reshape(len(x), -1, self.inputs)

    def to_images(self, by_patches: Tensor) -> Tensor:
        """The transpose of `patches`: [R, B P, K K C] -> [R, B, H W C], a sum where patches overlap."""
        k, s, rows, columns = self.kernel, self.stride, self.rows, self.columns
        parts = by_patches.view(len(by_patches), -1, rows, columns, k, k, self.shape[2])
        images = parts.new_zeros(*parts.shape[:2], *self.shape)
        for i, j in itertools.product(range(k), range(k)):
            images[:, :, i : i + s * rows : s, j : j + s * columns : s] += parts[:, :, :, :, i, j]
        return images.flatten(2)

    def patches_of_array(self, x: np.ndarray) -> np.ndarray:
        """`patches` in NumPy."""
        images = x.reshape(*x.shape[:2], *self.shape)
        windows = np.lib.stride_tricks.sliding_window_view(images, (self.kernel, self.kernel), (2, 3))
        windows = windows[:, :, :: self.stride, :: self.stride].transpose(0, 1, 2, 3, 5, 6, 4)
        return windows.reshape(len(x), -1, self.inputs)


class ImageNetwork(MLP):
    """Convolutions (`columns.CONVOLUTIONS`), then layers of `sizes`; ReLU between them, and the last is linear.

    Inputs are images [R, B, height, width, channels] or flat. Layers are [R, B, features], after a convolution
    [R, B, P F]: the F filters at each of its P positions. Its weight [K K C, F] is multiplied with patches
    [R, B P, K K C]. There is no `tangent` and no `to_inputs`.
    """

    def __init__(self, name: str, observation_shape: Sequence[int], convolutions: str, sizes: Sequence[int]):
        shape = tuple(observation_shape)
        self.windows: list[Window] = []
        front = []
        for filters, kernel, stride in CONVOLUTIONS[convolutions]:
            require_image(convolutions, observation_shape, shape, kernel)
            window = Window((shape[0], shape[1], shape[2]), kernel, stride)
            self.windows.append(window)
            front.append((window.inputs, filters))
            shape = (window.rows, window.columns, filters)
        super().__init__(name, (math.prod(shape), *sizes), "relu", front=front)
        self.positions[: len(front)] = [window.rows * window.columns for window in self.windows]

    def _through(self, weights: list[Tensor], inputs: Tensor) -> list[Tensor]:
        layers = [inputs.flatten(2)]
        for k, (weight, bias) in enumerate(zip(weights[::2], weights[1::2], strict=True)):
            x = self._operand(k, layers[-1])
            x = linear(x, weight, bias).reshape(*layers[0].shape[:2], -1)
            layers.append(x.clamp(min=0) if k < len(self.matrices) - 1 else x)
        return layers

    def _operand(self, k: int, x: Tensor) -> Tensor:
        """What the k-th layer's weight is multiplied with, given the layer below."""
        return self.windows[k].patches(x) if k < len(self.windows) else x

    def __call__(self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs [R, B, out] of images, differentiable by autograd."""
        return self._through(self._weights(parameters), inputs)[-1]

    @torch.no_grad()
    def forward(self, parameters: Parameters | Mapping[str, Tensor], inputs: Tensor) -> list[Tensor]:
        """Every layer's output, the inputs first and the network's output last: what `backward` needs."""
        return self._through(self._weights(parameters), inputs)

    def operands(self, layers: list[Tensor]) -> list[Tensor]:
        """What every layer's weight is multiplied with: [R, B P, K K C] patches, [R, B, in] in the perceptron."""
        return [self._operand(k, x) for k, x in enumerate(layers[:-1])]

    @torch.no_grad()
    def deltas(self, parameters: Parameters, layers: list[Tensor], delta: Tensor) -> list[Tensor]:
        """d loss / d (each layer's sums, before its activation): [R, B P, F] of convolutions, [R, B, out]."""
        weights, result = self._weights(parameters)[::2], [delta]
        for k in range(len(weights) - 1, 0, -1):
            delta = linear_to_inputs(result[0], weights[k], layers[k], None)
            if k < len(self.windows):
                delta = self.windows[k].to_images(delta)
            delta = torch.ops.aten.threshold_backward(delta, layers[k], 0.0)
            result.insert(0, delta.view(len(delta), -1, self.matrices[k - 1][1]))
        return result

    @torch.no_grad()
    def backward(self, parameters: Parameters, layers: list[Tensor], delta: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`; `layers` from `forward`, `delta` is d loss / d outputs."""
        slopes, grads = self.deltas(parameters, layers, delta), [parameters.grads[name] for name in self._names]
        for x, slope, weight, bias in zip(self.operands(layers), slopes, grads[::2], grads[1::2], strict=True):
            linear_to_weights(x, slope, weight, bias)

    def acting(self, parameters: Parameters) -> Callable[[np.ndarray], np.ndarray]:
        """The same function from and to NumPy, without gradients; it may differ in the last bits. See `MLP.acting`."""
        if parameters.flat.is_cuda:
            return super().acting(parameters)
        weights = [weight.detach().numpy() for weight in self._weights(parameters)]
        pairs = list(zip(weights[::2], weights[1::2], strict=True))

        def forward(images: np.ndarray) -> np.ndarray:
            samples = images.shape[:2]
            x = images.reshape(*samples, -1)
            for k, (weight, bias) in enumerate(pairs):
                x = np.matmul(self.windows[k].patches_of_array(x) if k < len(self.windows) else x, weight) + bias
                x = (np.maximum(x, 0, out=x) if k < len(pairs) - 1 else x).reshape(*samples, -1)
            return x

        return forward
