"""IQN: Dabney, Ostrovski, Silver, Munos 2018, "Implicit Quantile Networks for Distributional RL", arXiv:1806.06923.

The network takes a level tau beside the state and gives that quantile of the return,

    Z_tau(s, a) = f(psi(x) o phi(tau))_a,
    phi_j(tau) = relu( sum_{i=0}^{n-1} cos(pi i tau) w_ij + b_j )                              (equation 4),

where psi are the shared layers. Levels are drawn anew for every use: N for the estimates, N' for the targets, K to
choose actions; the loss is QR-DQN's over all pairs (equation 3).

Departures, beside DQN's: an evaluation uses the K midpoints (k - 1/2) / K, so that it needs no draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algorithms import dqn, qr_dqn
from algorithms.c51 import chosen
from algorithms.common.columns import Linear, Part, QNetwork, Stack
from algorithms.common.config import PerRun
from algorithms.common.layers import Parameters
from algorithms.common.replay import Transitions
from algorithms.common.streams import Streams

SUPPORTS = {"discrete"}


@dataclasses.dataclass(frozen=True)
class Config(dqn.Config):
    """DQN's with `td_clip` as kappa, and the numbers of levels (section 4; figure 2)."""

    learning_rate: PerRun = 5e-5
    adam_epsilon: float = 0.01 / 32
    num_quantiles: int = 64  # N
    num_target_quantiles: int = 64  # N'
    num_acting_quantiles: int = 32  # K
    num_cosines: int = 64  # n

    POSITIVE = (
        *dqn.Config.POSITIVE,
        *("num_quantiles", "num_target_quantiles", "num_acting_quantiles", "num_cosines"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        qr_dqn.require_finite_kappa(self)


class QuantileNetwork(QNetwork):
    """f(psi(x) o phi(tau)); the last hidden layer and the output layer follow the product, as in the paper's network.

    What other networks take as noise are the levels tau here: {"levels": [R, N, B]}.
    """

    def __init__(self, observation_shape: Any, num_actions: int, cfg: Config):
        super().__init__(observation_shape, num_actions, cfg.hidden_sizes, cfg.convolutions, deep_heads=True)
        (self.head,) = self.heads
        self.embedding = Stack([Linear("embedding", 0, cfg.num_cosines, self.head.layers[0].inputs)], hidden=True)
        self.layers += self.embedding.layers
        self.num_levels = cfg.num_quantiles
        self.midpoints = (np.arange(cfg.num_acting_quantiles, dtype=np.float32) + 0.5) / cfg.num_acting_quantiles
        self.frequencies = np.pi * np.arange(cfg.num_cosines, dtype=np.float32)
        self.sizes = {  # levels and samples, by what they are drawn for
            "acting noise": (cfg.num_acting_quantiles, cfg.num_envs),
            "online noise": (cfg.num_quantiles, cfg.batch_size),
            "target noise": (cfg.num_target_quantiles, cfg.batch_size),
            "selection noise": (cfg.num_acting_quantiles, cfg.batch_size),
        }

    def parts(self, parameters: Parameters, batch_size: int) -> list[Part]:
        """All runs, as many at a time as the cache holds: most layers see every sample once for each level."""
        return super().parts(parameters, batch_size * self.num_levels)

    def noise(self, streams: Streams, purpose: str, count: int) -> Iterator[Any]:
        """Levels uniform in [0, 1) for `count` passes, from the runs' own streams."""
        return ({"levels": drawn} for drawn in streams.uniform(purpose, (count, *self.sizes[purpose]), axis=1))

    def forward(self, part: Part, inputs: Tensor, noise: Any = None) -> tuple[Tensor, list[list[Tensor]]]:
        """Z_tau(s, .) [r, A * N, B] for observations [r, O, B]."""
        levels = torch.from_numpy(noise["levels"][part.runs]).to(inputs.device)
        runs, count, samples = levels.shape
        body = self.body.forward(part, inputs, None, self.scratch)
        frequencies = torch.from_numpy(self.frequencies).to(inputs.device)
        cosines = torch.cos(frequencies[:, None] * levels.view(runs, 1, -1))  # [r, n, N * B]
        embedded = self.embedding.forward(part, cosines, None, self.scratch)
        product = embedded[-1].view(runs, -1, count, samples) * body[-1].unsqueeze(2)
        head = self.head.forward(part, product.flatten(2), None, self.scratch)
        return head[-1].view(runs, -1, samples), [body, embedded, head]

    def backward(self, part: Part, tape: list[list[Tensor]], delta: Tensor, noise: Any = None) -> None:
        """Writes d loss / d weights into the part's gradients, from `forward`'s tape and d loss / d outputs."""
        body, embedded, head = tape
        features, shape = body[-1], (*body[-1].shape[:2], -1, body[-1].shape[2])  # [r, F, N, B]
        by_head = delta.reshape(len(delta), self.num_actions, -1)
        by_product = self.head.backward(part, head, by_head, None, self.scratch, to_inputs=True)
        assert by_product is not None
        by_embedding = by_product.view(shape) * features.unsqueeze(2)
        self.embedding.backward(part, embedded, by_embedding.flatten(2), None, self.scratch, to_inputs=False)
        if self.body.layers:
            by_features = (by_product.view(shape) * embedded[-1].view(shape)).sum(2)
            self.body.backward(part, body, by_features, None, self.scratch, to_inputs=False)

    def acting(self, parameters: Parameters) -> Callable[..., np.ndarray]:
        """Z_tau(s, .) [R, B, A, K] for observations [R, B, ...] and levels [R, K, B], the midpoints by default."""
        weights_of = self.weights_of(parameters)

        def forward(observations: np.ndarray, noise: Any = None) -> np.ndarray:
            weights, (runs, samples) = weights_of(), observations.shape[:2]
            features = self.body.act(weights, observations.reshape(runs, samples, -1), None)
            levels = np.broadcast_to(self.midpoints, (runs, samples, len(self.midpoints)))
            levels = levels if noise is None else noise["levels"].swapaxes(1, 2)  # [R, B, K]
            cosines = np.cos(levels[..., None] * self.frequencies).reshape(runs, -1, len(self.frequencies))
            embedded = self.embedding.act(weights, cosines, None).reshape(*levels.shape, -1)
            product = (embedded * features[:, :, None]).reshape(runs, -1, features.shape[2])
            return self.head.act(weights, product, None).reshape(*levels.shape, -1).swapaxes(2, 3)

        return forward


class Agent(qr_dqn.Agent):
    """IQN for R runs at once."""

    def _network(self, **structure: Any) -> QNetwork:
        return QuantileNetwork(self.envs.observation_shape, self.num_actions, self.cfg)

    def _targets(self, part: Part, target_part: Part, batch: Transitions) -> Tensor:
        """r + gamma Z_tau_j(s', a*): [r, N', B]; a* by the target network's mean over K levels."""
        successors = batch.next_observations.transpose(1, 2)
        preferences, _ = self.net.forward(target_part, successors, self.noise["selection"])
        quantiles, _ = self.net.forward(target_part, successors, self.noise["target"])
        best = chosen(self._by_action(quantiles), self._by_action(preferences).mean(2))
        return dqn.td_targets(batch.rewards.unsqueeze(1), batch.discounts.unsqueeze(1), best)

    def _levels(self, runs: slice) -> Tensor:
        """Those of the estimates, [r, N, B]."""
        return torch.from_numpy(self.noise["online"]["levels"][runs]).to(self.device)


if __name__ == "__main__":
    from bench.cli import train_main

    train_main("iqn")
