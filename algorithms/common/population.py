"""What evolution shares: members of each run's population play whole episodes, and their returns move its centre."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from algorithms.common.layers import MLP, Parameters
from algorithms.common.memory import Remembering
from algorithms.common.natural import from_vectors, to_vectors
from algorithms.common.normalization import ObservationNormalizer, RunningMoments
from algorithms.common.rollouts import Collector, Rollout
from algorithms.common.streams import Streams

STEPS = 100  # of every environment in one iterate(); a matter of speed only, results do not depend on it


class PopulationAgent(Remembering):
    """A deterministic policy for each run, the centre of its search, and the episodes of the P members around it.

    A run's N environments share the members of its generation out: where an episode ends, the next member begins one.
    Where none is left and others still play, the centre plays an episode whose return nobody uses; its steps count as
    all others do, and with N = 1 there are none. A run whose members have all been played moves its centre at once;
    other runs may be at another member, or in another generation.

    An algorithm adds what a member's weights are (`_members`) and how the centre moves (`_update`). Vectors of weights
    [D] hold the parameters in `learned`, the noise a generation is made of is [R, K, D]. `cfg` has hidden_sizes,
    clip_actions and normalize_observations; with the latter the policy sees (x - mean) / std, clipped to +-`clip`, by
    the states its run had met up to the end of the last generation.
    """

    memory: ClassVar[tuple[str, ...]] = (
        "parameters", "playing", "streams", "collector", "met", "noise", "member", "taken", "returns", "finished",
        "so_far", "generation", "iteration",
    )  # fmt: skip
    metrics: ClassVar[tuple[str, ...]] = ("mean_return", "best_return")  # of a generation

    def __init__(
        self,
        cfg: Any,
        envs: Any,
        seeds: Sequence[int],
        num_members: int,
        num_noises: int,
        device: str = "cpu",
        learned: Iterable[str] | None = None,
        clip: float = math.inf,
    ):
        self.cfg, self.envs, self.device, self.num_members = cfg, envs, device, num_members
        self.num_runs, self.num_noises = len(seeds), num_noises
        self.steps_per_iteration = STEPS * envs.num_envs  # env_steps per run
        self.streams = Streams(seeds)
        outputs = envs.num_actions or envs.action_shape[0]
        self.network = MLP("actor", (envs.observation_shape[0], *cfg.hidden_sizes, outputs))
        self.parameters = Parameters(self.num_runs, self.network.shapes(), device)  # the centres, 0 at first
        self.learned = self.parameters.part(learned or self.network.shapes())
        self.playing = Parameters(self.num_runs * envs.num_envs, self.network.shapes(), device)  # in each environment
        self._centre, self._player = self.network.acting(self.parameters), self.network.acting(self.playing)
        self.collector = Collector(envs, seeds, clip_actions=cfg.clip_actions)
        self.met = RunningMoments(self.num_runs, envs.observation_shape)  # of all states until now
        self.normalizer = ObservationNormalizer(
            self.num_runs, envs.observation_shape, clip
        )  # until the last generation
        self.iteration = 0
        self.timers = self.collector.timers  # seconds

        shape = self.num_runs, envs.num_envs
        self.noise = self.streams.normal("directions", (num_noises, sum(map(math.prod, self.learned.shapes.values()))))
        self.member = np.full(shape, num_members)  # who plays in each environment; P stands for the centre
        self.so_far = np.zeros(shape)  # return of the episode under way
        self.returns = np.zeros((self.num_runs, num_members))  # of the members that are finished
        self.taken, self.finished = np.zeros(self.num_runs, np.int64), np.zeros(self.num_runs, np.int64)
        self.generation = np.zeros(self.num_runs, np.int64)
        self.bonus = np.zeros((self.num_runs, 1))  # taken off every reward

    def _members(self, runs: np.ndarray, members: np.ndarray, centres: np.ndarray) -> np.ndarray:
        """The weights [K, D] of members [K] of the runs [K], whose centres are [K, D]; from `noise`."""
        raise NotImplementedError

    def _update(self, run: int, centre: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """A run's next centre [D], by `noise` and `returns` of a whole generation, and metrics."""
        raise NotImplementedError

    def iterate(self) -> dict[str, np.ndarray]:
        """STEPS steps of every environment; a run whose members have all been played moves its centre. Returns
        metrics, each [R]: means over its generations that ended, nan without one."""
        if self.iteration == 0:
            self._take(*np.indices(self.member.shape).reshape(2, -1))
        told: list[list[dict[str, float]]] = [[] for _ in range(self.num_runs)]
        for _ in range(STEPS):
            rollout = self.collector.collect(1, self._act)
            start = time.perf_counter()
            runs, environments = self._count(rollout)
            for run in (self.finished == self.num_members).nonzero()[0].tolist():
                told[run].append(self._end_generation(run))
            if runs.size:
                self._take(runs, environments)
            self.timers["learn"] += time.perf_counter() - start
        self.iteration += 1
        return {"generations": np.array([float(len(rows)) for rows in told])} | {
            name: np.array([np.mean([row[name] for row in rows]) if rows else np.nan for rows in told])
            for name in self.metrics
        }

    def _act(self, observations: np.ndarray, _: int) -> np.ndarray:
        """What the members in the environments do at observations [R, N, O]."""
        if self.cfg.normalize_observations:
            self.met.update(observations.astype(np.float64))
        seen = self._see(observations)
        return self._decide(self._player(seen.reshape(-1, 1, seen.shape[-1])).reshape(*seen.shape[:2], -1))

    def _see(self, observations: np.ndarray) -> np.ndarray:
        return self.normalizer(observations) if self.cfg.normalize_observations else observations

    def _decide(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.argmax(-1) if self.envs.num_actions else outputs

    def _count(self, rollout: Rollout) -> tuple[np.ndarray, np.ndarray]:
        """Adds a step [1, R, N, ...]; returns runs [K] and environments [K] whose episode has ended."""
        self.so_far += rollout.rewards[0] - self.bonus
        runs, environments = (rollout.terminations | rollout.truncations)[0].nonzero()
        members = self.member[runs, environments]
        counts = members < self.num_members
        self.returns[runs[counts], members[counts]] = self.so_far[runs, environments][counts]
        np.add.at(self.finished, runs[counts], 1)
        self.so_far[runs, environments] = 0.0
        return runs, environments

    def _take(self, runs: np.ndarray, environments: np.ndarray) -> None:
        """The next members of runs [K] begin in their environments [K], the centre where there are none left."""
        for run, environment in zip(runs.tolist(), environments.tolist(), strict=True):
            self.member[run, environment] = self.taken[run]
            self.taken[run] = min(self.taken[run] + 1, self.num_members)
        members = self.member[runs, environments]
        weights = to_vectors(self.learned.views).cpu().numpy()[runs]
        drawn = members < self.num_members
        weights[drawn] = self._members(runs[drawn], members[drawn], weights[drawn])
        index = torch.from_numpy(runs * self.envs.num_envs + environments).to(self.device)
        vectors = torch.from_numpy(weights).to(self.device)
        for name, values in from_vectors(vectors, self.learned.shapes).items():
            self.playing[name].detach().index_copy_(0, index, values)

    def _end_generation(self, run: int) -> dict[str, float]:
        """Moves a run's centre and draws the noise of its next generation. Returns metrics."""
        centre, metrics = self._update(run, to_vectors(self.learned.views)[run].cpu().numpy())
        for name, values in from_vectors(torch.from_numpy(centre[None]).to(self.device), self.learned.shapes).items():
            self.learned[name].detach()[run].copy_(values[0])
        self.noise[run] = self.streams["directions"][run].standard_normal(self.noise.shape[1:], np.float32)
        self.taken[run] = self.finished[run] = 0
        self.generation[run] += 1
        for name in ("mean", "variance"):
            values = getattr(self.normalizer.moments, name).copy()
            values[run] = getattr(self.met, name)[run]
            setattr(self.normalizer.moments, name, values)
        mean, best = float(self.returns[run].mean()), float(self.returns[run].max())
        return {"mean_return": mean, "best_return": best} | metrics

    def act(self, observations: np.ndarray, streams: Streams | None = None) -> np.ndarray:
        """The centres' actions [R, N, ...] for observations [R, N, O]; there is nothing to sample."""
        return self.collector.clip(self._decide(self._centre(self._see(observations))))

    def diverged(self) -> np.ndarray:
        """Runs with weights that are not finite, the centre's or of a member that plays: bool [R]."""
        return ~(self.parameters.finite() & self.playing.finite().reshape(self.member.shape).all(1))

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The weights of one run's centre, and the statistics its policy needs."""
        moments = self.normalizer.moments
        statistics = {"observations.mean": moments.mean[run], "observations.variance": moments.variance[run]}
        return self.learned.of_run(run) | (statistics if self.cfg.normalize_observations else {})

    def state(self) -> dict[str, Any]:
        """Everything needed to go on exactly; the environments keep their own."""
        return super().state() | {"normalizer": self.normalizer.moments.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        super().load_state(state)
        self.normalizer.moments.load_state(state["normalizer"])


class MirroredAgent(PopulationAgent):
    """A population of K pairs: member 2 k is the centre plus `cfg.direction_std` times direction k, member 2 k + 1 the
    centre minus that."""

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], num_directions: int, device: str, **more: Any):
        super().__init__(cfg, envs, seeds, 2 * num_directions, num_directions, device, **more)

    def _members(self, runs: np.ndarray, members: np.ndarray, centres: np.ndarray) -> np.ndarray:
        scale = (self.cfg.direction_std[runs] * (1 - 2 * (members % 2))).astype(np.float32)
        weights: np.ndarray = centres + scale[:, None] * self.noise[runs, members // 2]
        return weights

    def pairs(self, run: int) -> np.ndarray:
        """Returns [K, 2] of a run's members: plus and minus each direction."""
        return self.returns[run].reshape(-1, 2)


def weighted_sum(weights: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """sum_k weights_k directions_k, [K] and [K, D] -> float64 [D]; as a sum of rows, whose order is always the same."""
    total: np.ndarray = (weights[:, None] * directions.astype(np.float64)).sum(0)
    return total
