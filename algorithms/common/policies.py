"""The stochastic policy of policy-gradient algorithms: softmax over discrete actions, a normal over continuous ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from algorithms.common.distributions import Categorical, Distribution, Gaussian
from algorithms.common.images import ImageNetwork
from algorithms.common.layers import MLP, Initializer, Parameters
from algorithms.common.streams import Streams


class Policy:
    """A perceptron `actor` for the logits, or for the mean beside a `log_std` of its own that starts at 0.

    What it sees is the observation, or `num_inputs` features of it. On images there are `convolutions` in front.
    """

    def __init__(
        self,
        envs: Any,
        hidden_sizes: Sequence[int],
        activation: str = "tanh",
        num_inputs: int | None = None,
        convolutions: str = "none",
    ):
        self.discrete = envs.num_actions is not None
        self.num_outputs = envs.num_actions if self.discrete else envs.action_shape[0]
        sizes = (*hidden_sizes, self.num_outputs)
        if convolutions == "none":
            inputs = envs.observation_shape[0] if num_inputs is None else num_inputs
            self.network = MLP("actor", (inputs, *sizes), activation)
        else:
            self.network = ImageNetwork("actor", envs.observation_shape, convolutions, sizes)
        self.parameters: Parameters

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes to allocate, per run."""
        return self.network.shapes() | ({} if self.discrete else {"log_std": (1, self.num_outputs)})

    def initialize(
        self,
        parameters: Parameters,
        rngs: Iterable[np.random.Generator],
        hidden: Initializer,
        last: Initializer,
        bias: Initializer | None = None,
    ) -> None:
        """Draw the weights; from now on the policy is that of these parameters."""
        self.network.initialize(parameters, rngs, hidden, last, bias)
        self.bind(parameters)

    def bind(self, parameters: Parameters) -> None:
        """From now on the policy is that of these parameters."""
        self.parameters, self._outputs = parameters, self.network.acting(parameters)

    def log_std(self) -> Tensor | None:
        """The logarithm of the standard deviation [R, 1, A]; None for discrete actions."""
        return None if self.discrete else self.parameters["log_std"].detach()

    def distribution(self, outputs: Tensor, log_std: Tensor | None) -> Distribution:
        """What the network's outputs [R, B, A] stand for."""
        return Categorical(outputs) if log_std is None else Gaussian(outputs, log_std)

    def sampler(self, streams: Streams, num_steps: int, num_envs: int) -> Callable[[np.ndarray, int], np.ndarray]:
        """Actions for (observations [R, N, O], t < num_steps), their noise drawn at once from the stream `actions`."""
        shape = (num_steps, num_envs, self.num_outputs)
        if self.discrete:
            gumbel = streams.gumbel("actions", shape, axis=1)
            return lambda observations, t: (self._outputs(observations) + gumbel[t]).argmax(-1)
        noise = np.exp(self.parameters["log_std"].detach().cpu().numpy()) * streams.normal("actions", shape, axis=1)
        return lambda observations, t: self._outputs(observations) + noise[t]

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, ...] for observations [R, N, O]: the mode, or a sample when streams are given."""
        if streams is not None:
            return self.sampler(streams, 1, observations.shape[1])(observations, 0)
        outputs = self._outputs(observations)
        return outputs.argmax(-1) if self.discrete else outputs

    def write_gradient(self, layers: list[Tensor], by_outputs: Tensor, by_log_std: Tensor | None) -> None:
        """Write the parameters' gradients, given `network.forward`'s result and `Distribution.gradient`'s."""
        self.network.backward(self.parameters, layers, by_outputs)
        if by_log_std is not None:
            self.parameters.grads["log_std"].copy_(by_log_std)
