"""What off-policy actor-critics for continuous actions share: acting and remembering, the actor, the critics.

Actions are numbers in [-1, 1] everywhere inside: in the memory, before the critics, as the scale of all noise. They are
stretched to the task's box where they leave for it.
"""

from __future__ import annotations

import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import per_run_tensors, require
from algorithms.common.layers import MLP, Parameters, fan_in_uniform, tanh_
from algorithms.common.memory import Remembering
from algorithms.common.on_policy import require_positive, require_shares
from algorithms.common.optimizers import Adam
from algorithms.common.replay import Replay
from algorithms.common.runtime import flushed_denormals
from algorithms.common.schedules import crossings
from algorithms.common.streams import Streams

STEPS = 50  # of every environment in one iterate(); a matter of speed only, results do not depend on it
Learned = dict[str, Tensor]  # of one update, entries [R, ...]: metrics, once they are averaged over all but R


def check_settings(cfg: Any) -> None:
    """What holds for the settings of all of these algorithms."""
    require_positive(cfg, "learning_rate", "actor_learning_rate", "train_period", "buffer_size", "batch_size")
    require_positive(cfg, "num_envs", "hidden_sizes", "adam_epsilon")
    require_shares(cfg, "gamma", "tau")
    for name in ("learning_starts", "random_steps"):
        require(getattr(cfg, name) >= 0, f"{name} is {getattr(cfg, name)}; it must not be negative")
    require(
        cfg.buffer_size % cfg.num_envs == 0,
        f"buffer_size is {cfg.buffer_size}; it must be a multiple of num_envs = {cfg.num_envs}",
    )


def initialize(
    network: MLP, parameters: Parameters, rngs: Sequence[np.random.Generator], last_layer: float = 0.0
) -> None:
    """Weights and biases uniform in +-1/sqrt(in), torch's default; those of the last layer in +-`last_layer` if it is
    not 0 (arXiv:1509.02971, section 7)."""
    network.initialize(parameters, rngs, fan_in_uniform, fan_in_uniform, fan_in_uniform)
    if last_layer:
        layer = len(network.sizes) - 2
        for kind in ("weight", "bias"):
            parameters[f"{network.name}.{kind}{layer}"].detach().mul_(last_layer * math.sqrt(network.sizes[-2]))


class Critics:
    """N critics in each run: networks of (s, a), side by side at the first layer, with K outputs each.

    All are one batch of perceptrons, critic n of run r in row r * N + n. `parameters` are the online weights, `target`
    those that follow. Without actions (A = 0) they are networks of s alone.
    """

    def __init__(
        self,
        num_runs: int,
        num_critics: int,
        sizes: Sequence[int],
        action_size: int,
        device: str,
        name: str = "critic",
        network: MLP | None = None,
    ):
        self.num_runs, self.num_critics, self.action_size = num_runs, num_critics, action_size
        self.network = network or MLP(name, sizes, "relu")
        self.parameters, self.target = (
            Parameters(num_runs * num_critics, self.network.shapes(), device) for _ in range(2)
        )
        self.first = {name: view.detach()[::num_critics] for name, view in self.parameters.views.items()}

    def initialize(self, streams: Streams, last_layer: float) -> None:
        """Draw the weights, each critic's from streams of its own."""
        each = [streams[f"{self.network.name} {n}"] for n in range(self.num_critics)]
        initialize(
            self.network, self.parameters, [rng for of_run in zip(*each, strict=True) for rng in of_run], last_layer
        )
        self.target.copy_(self.parameters)

    def forward(self, parameters: Parameters, observations: Tensor, actions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs [R, N, B, K] of all critics, and every layer's: they hold until the next call."""
        inputs = torch.cat((observations, actions), 2)
        if self.num_critics > 1:
            inputs = inputs.repeat_interleave(self.num_critics, 0)
        layers = self.network.forward(parameters, inputs)
        return layers[-1].unflatten(0, (self.num_runs, self.num_critics)), layers

    def backward(self, layers: list[Tensor], by_outputs: Tensor) -> None:
        """Write d loss / d weights into `parameters.grad`, given d loss / d outputs [R, N, B, K]."""
        self.network.backward(self.parameters, layers, by_outputs.flatten(0, 1))

    def to_actions(self, layers: list[Tensor], by_outputs: Tensor) -> Tensor:
        """d loss / d a [R, B, A], given d loss / d outputs [R, N, B, K]."""
        by_inputs = self.network.to_inputs(self.parameters, layers, by_outputs.flatten(0, 1))
        by_actions = by_inputs[..., -self.action_size :].unflatten(0, (self.num_runs, self.num_critics))
        return functools.reduce(torch.add, by_actions.unbind(1))  # torch's sum is slow on a view that is not contiguous

    def first_to_actions(self, observations: Tensor, actions: Tensor, by_outputs: Tensor) -> Tensor:
        """d loss / d a [R, B, A] through the first critic of each run alone, given d loss / d outputs [R, B, K]."""
        layers = self.network.forward(self.first, torch.cat((observations, actions), 2))
        return self.network.to_inputs(self.first, layers, by_outputs)[..., -self.action_size :]

    def follow(self, tau: np.ndarray) -> None:
        """Move the target weights by tau [R] of the way to the online ones."""
        self.target.lerp_(self.parameters, np.repeat(tau, self.num_critics))

    def finite(self) -> np.ndarray:
        """Per run, whether every weight is finite: bool [R]."""
        finite: np.ndarray = self.parameters.finite().reshape(self.num_runs, self.num_critics).min(1)
        return finite

    def of_run(self, run: int) -> dict[str, np.ndarray]:
        """One run's weights by name, `critic0.weight0` and so on."""
        rows, own = range(self.num_critics), self.network.name
        weights = (self.parameters.of_run(run * self.num_critics + n) for n in rows)
        return {f"{own}{n}{name.removeprefix(own)}": x for n in rows for name, x in next(weights).items()}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"parameters": self.parameters.state(), "target": self.target.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self.parameters.load_state(state["parameters"])
        self.target.load_state(state["target"])


class OffPolicyAgent(Remembering):
    """Networks, memory and streams of R runs; an algorithm adds what it explores with and what an update is.

    `memory` names what has to be saved: parts that have a `state()`, arrays and numbers. `update_noise` names streams
    from which every update gets standard normal numbers [R, B, A], and `metrics` what it returns.
    """

    memory: ClassVar[tuple[str, ...]] = (
        *("parameters", "critics", "actor_optimizer", "critic_optimizer", "replay", "streams"),
        *("observations", "started", "env_steps"),
    )
    update_noise: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ("critic_loss", "q_values")

    def __init__(
        self,
        cfg: Any,
        envs: Any,
        seeds: Sequence[int],
        device: str = "cpu",
        *,
        num_critics: int = 1,
        outputs_per_action: int = 1,
        outputs_per_critic: int = 1,
        critic_hidden_sizes: Sequence[int] | None = None,
        critics_see_actions: bool = True,
        last_layer: float = 0.0,
    ):
        self.cfg, self.envs, self.device = cfg, envs, device
        self.num_runs, self.steps_per_iteration = len(seeds), STEPS * cfg.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        self.coef = per_run_tensors(cfg, device)  # [R, 1]
        shape = envs.observation_shape
        require(len(shape) == 1, f"the task's observations are {shape}; this algorithm needs rows of numbers")
        (self.observation_size,), self.action_size = shape, self._look_at_actions()

        sizes = (self.observation_size, *cfg.hidden_sizes, self.action_size * outputs_per_action)
        self.actor = self._perceptron("actor", sizes, self.num_runs)
        self.parameters = Parameters(self.num_runs, self.actor.shapes(), device)  # the actor's
        initialize(self.actor, self.parameters, self.streams["actor"], last_layer)
        self.actor_outputs = self.actor.acting(self.parameters)
        hidden_sizes = cfg.hidden_sizes if critic_hidden_sizes is None else critic_hidden_sizes
        seen = self.action_size if critics_see_actions else 0
        sizes = (self.observation_size + seen, *hidden_sizes, outputs_per_critic)
        network = self._perceptron("critic", sizes, self.num_runs * num_critics)
        self.critics = Critics(self.num_runs, num_critics, sizes, seen, device, network=network)
        self.critics.initialize(self.streams, last_layer)
        self.actor_optimizer = Adam(self.parameters, cfg.adam_epsilon)
        self.critic_optimizer = Adam(self.critics.parameters, cfg.adam_epsilon)
        self.replay = self._memory()

        self.env_steps = 0
        self.timers: dict[str, float] = defaultdict(float)  # seconds
        self.observations = envs.reset(seeds)  # [R, N, O]
        self.started = np.ones((self.num_runs, cfg.num_envs), bool)  # whether they are an episode's first

    def iterate(self) -> dict[str, np.ndarray]:
        """STEPS steps of every environment and their updates. Returns metrics, each [R]: of the last update, if any."""
        cfg, clock = self.cfg, time.perf_counter
        env_steps = self.env_steps + cfg.num_envs * np.arange(1, STEPS + 1)  # after each step
        updates = crossings(env_steps, cfg.num_envs, cfg.train_period) * (env_steps > cfg.learning_starts)
        explore, draws = self._first_random(self._explorer(), env_steps), self._draws(int(updates.sum()))
        learned: Learned = {}
        with flushed_denormals():
            for t in range(STEPS):
                begin = clock()
                actions = explore(self.observations, t)  # [R, N, A]
                acted = clock()
                step = self.envs.step(self.to_box(actions))
                stepped = clock()
                outcome = step.rewards, step.next_observations, step.terminations, step.truncations
                self.replay.add(self.observations, actions, *outcome)
                self.observations, self.started = step.observations, step.terminations | step.truncations
                for _ in range(updates[t]):
                    learned = self._learn(*next(draws))
                self.timers["act"] += acted - begin
                self.timers["env"] += stepped - acted
                self.timers["learn"] += clock() - stepped
        self.env_steps = int(env_steps[-1])
        missing = np.full(self.num_runs, np.nan)
        means = {name: x.flatten(1).mean(1).double().cpu().numpy() for name, x in learned.items()}
        return {name: means.get(name, missing) for name in self.metrics}

    # ---- what an algorithm fills in

    def _perceptron(self, name: str, sizes: Sequence[int], rows: int) -> MLP:
        """The network of the actor, or that of the critics, for so many runs times critics."""
        return MLP(name, sizes, "relu")

    def _look_at_actions(self) -> int:
        """How many numbers make up an action; remembers their bounds."""
        (size,), low, high = self.envs.action_shape, self.envs.action_low, self.envs.action_high
        require(bool(np.isfinite([low, high]).all()), "the task's actions have no bounds; this algorithm needs them")
        self.centre, self.half_width = (high + low) / 2, (high - low) / 2
        return int(size)

    def _random_actions(self) -> np.ndarray:
        """Uniformly random ones, [STEPS, R, N, A]."""
        shape = (STEPS, self.cfg.num_envs, self.action_size)
        return 2 * self.streams.uniform("random actions", shape, axis=1) - 1

    def _explorer(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """Actions [R, N, A] for (observations [R, N, O], t < STEPS), their noise drawn at once."""
        raise NotImplementedError

    def _learn(self, uniform: np.ndarray, *noise: Tensor) -> Learned:
        """One update on transitions drawn by numbers in [0, 1), [R, B]."""
        raise NotImplementedError

    def _memory(self, kind: type[Replay] = Replay, **settings: Any) -> Replay:
        cfg = self.cfg
        sizes = self.observation_size, self.action_size
        return kind(self.num_runs, cfg.buffer_size, cfg.num_envs, *sizes, cfg.gamma, device=self.device, **settings)

    def _estimate(self, outputs: Tensor) -> Tensor:
        """Q(s, a) [R, B] by the critics' outputs [R, N, B, K]: the least of theirs."""
        return outputs.squeeze(-1).amin(1)

    # ----

    def _first_random(
        self, explore: Callable[[np.ndarray, int], np.ndarray], env_steps: np.ndarray
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """Uniformly random actions in the first `random_steps`, `explore`'s after that."""
        if self.env_steps >= self.cfg.random_steps:
            return explore
        drawn, last = self._random_actions(), self.cfg.random_steps
        return lambda observations, t: drawn[t] if env_steps[t] <= last else explore(observations, t)

    def _draws(self, count: int) -> Iterator[tuple[Any, ...]]:
        """For each of `count` updates: numbers in [0, 1) to draw transitions by [R, B], and noise, [R, B, A] each."""
        size = self.cfg.batch_size
        uniform = self.streams.draw("replay", lambda rng: rng.random((count, size)), axis=1)
        shape = (count, size, self.action_size)
        noise = [torch.from_numpy(self.streams.normal(name, shape, 1)).to(self.device) for name in self.update_noise]
        return zip(uniform, *noise, strict=True)

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """What the task takes in place of actions in [-1, 1]."""
        stretched: np.ndarray = self.centre + self.half_width * actions
        return stretched

    def mode(self, observations: Tensor) -> Tensor:
        """The policy's actions [R, B, A] for observations [R, B, O], without noise: tanh of the first A outputs."""
        outputs = self.actor.forward(self.parameters, observations)[-1]
        return tanh_(outputs[..., : self.action_size].contiguous())

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """Actions [R, N, A] for observations [R, N, O], as the task takes them: without noise, or, when streams are
        given, as in training."""
        raise NotImplementedError

    @torch.no_grad()
    def values(self, observations: np.ndarray) -> np.ndarray:
        """Q(s, a) [R, N] of observations [R, N, O] at the policy's action without noise, by the first critic alone: the
        least of several would be lower than one whatever they have learned, and could not be compared with it."""
        inputs = torch.from_numpy(observations).to(self.device)
        outputs, _ = self.critics.forward(self.critics.parameters, inputs, self.mode(inputs))
        return self._estimate(outputs[:, :1]).cpu().numpy()

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~(self.parameters.finite() & self.critics.finite())

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run."""
        return self.parameters.of_run(run) | self.critics.of_run(run)
