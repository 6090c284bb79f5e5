"""Asynchronous actor-learners that share their weights: Mnih et al. 2016, arXiv:1602.01783, section 4.

W workers of a run have an environment and a copy theta' of the weights each. A worker's turn, the body of the loops of
its algorithms 1, S2 and S3: act for t_max steps by theta', accumulate the gradient at theta', apply it to the shared
theta by RMSProp, count the steps in the shared counter T, and copy theta to theta'. Others have moved theta meanwhile.

Two schedules of the turns:
- `hogwild`: W processes. theta, theta-, RMSProp's mean squares and T lie in shared memory, and nobody locks anything
  (arXiv:1106.5730). What is computed depends on who came when: no two trainings are the same.
- `serial`: all workers act, each by its own theta'; then their gradients are applied in the order of the workers, each
  of which copies theta after its own update. These are the updates of one of the interleavings that Hogwild may meet,
  the one in which worker w's theta' always lacks the W - 1 updates before its own. It takes one process, and is
  reproducible bit for bit.

The run axis stays: a process trains its worker of all R runs. Entries k = r W + w (K = R W) are the workers of a
process: one each of every run under `hogwild`, all under `serial`.

Departures from the paper:
- A turn is t_max steps, also where an episode ends inside: its sums end there, and the next episode's begin. (In the
  paper the turn ends there; for R runs side by side its length would be a mask over steps not taken.)
- The loop stops at every `iterate()`, where all workers wait for the last one's turn to end, so that what the driver
  evaluates, saves and counts is the same for all of them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from algorithms.common.config import per_run_fields, per_run_tensors, require
from algorithms.common.layers import Parameters
from algorithms.common.memory import Remembering
from algorithms.common.optimizers import RMSProp
from algorithms.common.processes import Crew
from algorithms.common.rollouts import Collector, Rollout
from algorithms.common.runtime import flushed_denormals
from algorithms.common.streams import Streams

TURNS = 20  # of every worker in one iterate() under `hogwild`, if all are as quick


class Shared:
    """What the workers of R runs share: weights theta [R, ...], a target network's theta-, mean squares, and T."""

    def __init__(self, cfg: Any, num_runs: int, shapes: Mapping[str, tuple[int, ...]], with_target: bool):
        self.num_runs, self.shapes = num_runs, dict(shapes)
        size, rows = Parameters(num_runs, self.shapes).flat.numel(), 1 if cfg.share_statistics else cfg.num_envs
        layout: dict[str, tuple[str, tuple[int, ...]]] = {
            "weights": ("f4", (size,)),
            "target": ("f4", (size * with_target,)),
            "mean_squares": ("f4", (rows, size)),  # of all workers, or of each
            "steps": ("i8", (cfg.num_envs,)),  # env_steps of each worker: nobody else writes there, so none gets lost
            "target_updates": ("i8", (num_runs,)),
        }
        self._memory = {}
        for name, (kind, shape) in layout.items():
            floats = math.prod(shape) * np.dtype(kind).itemsize
            raw: Any = RawArray(ctypes.c_byte, floats) if cfg.schedule == "hogwild" else bytearray(floats)
            self._memory[name] = raw, kind, shape
        self._map()
        self.arrays["mean_squares"][:] = cfg.rmsprop_start

    def _map(self) -> None:
        """The same memory as arrays and tensors; gradients are this process's own."""
        self.arrays = {
            name: np.frombuffer(raw, kind).reshape(shape) for name, (raw, kind, shape) in self._memory.items()
        }
        self.steps, self.target_updates = self.arrays["steps"], self.arrays["target_updates"]
        self.parameters = self._parameters("weights")
        self.target = self._parameters("target") if self.arrays["target"].size else None
        self.mean_squares = torch.from_numpy(self.arrays["mean_squares"])

    def _parameters(self, name: str) -> Parameters:
        flat = torch.from_numpy(self.arrays[name])
        return Parameters(self.num_runs, self.shapes, buffers=(flat, torch.zeros_like(flat)))

    def __getstate__(self) -> tuple[Any, ...]:  # on its way to another process, which maps the same memory
        return self.num_runs, self.shapes, self._memory

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.num_runs, self.shapes, self._memory = state
        self._map()

    @property
    def env_steps(self) -> int:
        """T: steps of all workers of a run."""
        return int(self.steps.sum())

    def update_target(self, period: np.ndarray) -> None:
        """theta- <- theta for runs of which T has crossed a multiple of `period` [R], env_steps, since the last time.

        Two workers may find the same crossing, and both copy; none is missed.
        """
        assert self.target is not None
        crossed = (self.env_steps // period).astype(np.int64)
        due = crossed > self.target_updates
        if due.any():
            self.target_updates[due] = crossed[due]
            runs = due.nonzero()[0].tolist()
            torch._foreach_copy_(
                self.target.slices(self.target.flat, runs), self.parameters.slices(self.parameters.flat, runs)
            )

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on."""
        return {name: array.copy() for name, array in self.arrays.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on exactly where `state()` was taken."""
        for name, array in self.arrays.items():
            array[:] = state[name]


class EachWorkers(Streams):
    """Draws for K entries: a run's generator is asked once for each of its workers here, in their order."""

    def __init__(self, streams: Streams, workers: int):
        self.streams, self.workers = streams, workers

    def __getitem__(self, purpose: str) -> list[np.random.Generator]:
        return [rng for rng in self.streams[purpose] for _ in range(self.workers)]


class ActorLearners(Remembering):
    """The workers `indices` of R runs, in one process. An algorithm says how they act and what their gradients are.

    `own` holds their theta' [K, ...]; `each` and `coef` are the settings with per-run values [K] and [K, 1].
    """

    memory: ClassVar[tuple[str, ...]] = ("own", "collector")

    def __init__(
        self, cfg: Any, envs: Any, seeds: Sequence[int], shared: Shared, streams: Streams, indices: Sequence[int]
    ):
        self.cfg, self.envs, self.shared, self.indices = cfg, envs, shared, list(indices)
        self.num_runs, self.size = len(seeds), len(self.indices)
        self.streams = EachWorkers(streams, self.size)
        repeated = {name: np.repeat(getattr(cfg, name), self.size) for name in per_run_fields(type(cfg))}
        self.each = dataclasses.replace(cfg, **repeated)
        self.coef = per_run_tensors(self.each)
        self.collector = Collector(envs, seeds, clip_actions=getattr(cfg, "clip_actions", None))

        parameters = shared.parameters
        self.own = Parameters(self.num_runs * self.size, parameters.shapes)
        self._theta = [view.detach() for view in parameters.views.values()]  # [R, ...] each
        self._gradient_of_theta = list(parameters.grads.values())
        self._own_theta = self._by_worker(self.own.views)
        self._own_gradient = self._by_worker(self.own.grads)
        rows = len(shared.mean_squares)
        settings = cfg.optimizer_epsilon, cfg.rmsprop_decay, cfg.epsilon_inside_root
        self.optimizers = {
            row: RMSProp(parameters, *settings, mean_square=shared.mean_squares[row])
            for row in {index % rows for index in self.indices}
        }
        for i in range(self.size):
            torch._foreach_copy_(self._own_theta[i], self._theta)
        self._make_networks()

    def _by_worker(self, views: Mapping[str, Tensor]) -> list[list[Tensor]]:
        """The parts [R, ...] of views [K, ...] that belong to each worker."""
        pairs = [view.detach().unflatten(0, (self.num_runs, self.size)) for view in views.values()]
        return [[pair[:, i] for pair in pairs] for i in range(self.size)]

    @torch.no_grad()
    def turn(self) -> dict[str, np.ndarray]:
        """One turn of every worker here. Returns metrics, each [R], means over the workers."""
        rollout = self._act()
        start = time.perf_counter()
        with flushed_denormals():
            metrics = self._gradient(rollout)
            for i, index in enumerate(self.indices):
                self._update(i, index)
        self.collector.timers["learn"] += time.perf_counter() - start
        return {name: x.view(self.num_runs, self.size).mean(1).double().numpy() for name, x in metrics.items()}

    def _update(self, i: int, index: int) -> None:
        """Apply the gradient of worker `index`, the i-th here, to theta, and copy theta to its theta'."""
        cfg, shared = self.cfg, self.shared
        torch._foreach_copy_(self._gradient_of_theta, self._own_gradient[i])
        left = np.maximum(1 - shared.env_steps / cfg.anneal_steps, 0)  # [R]
        optimizer = self.optimizers[index % len(shared.mean_squares)]
        optimizer.step(cfg.learning_rate * left, cfg.max_grad_norm)
        shared.steps[index] += cfg.num_steps
        if shared.target is not None:
            shared.update_target(cfg.target_period)
        torch._foreach_copy_(self._own_theta[i], self._theta)

    def _act(self) -> Rollout:
        """t_max steps of every worker; entries [T, K, 1, ...]."""
        policy = self._policy()

        def act(observations: np.ndarray, t: int) -> np.ndarray:
            actions = policy(self.by_entry(observations), t)
            return actions.reshape(self.num_runs, self.size, *actions.shape[2:])

        rollout = self.collector.collect(self.cfg.num_steps, act)
        return Rollout(*(entry.reshape(len(entry), -1, 1, *entry.shape[3:]) for entry in rollout))

    def by_entry(self, observations: np.ndarray) -> np.ndarray:
        """[R, W, ...] -> [K, 1, ...]."""
        return observations.reshape(-1, 1, *observations.shape[2:])

    # ---- what an algorithm fills in

    def _make_networks(self) -> None:
        """Whatever acts and learns by the weights in `own`."""
        raise NotImplementedError

    def _policy(self) -> Callable[[np.ndarray, int], np.ndarray]:
        """Actions [K, 1, ...] for (observations [K, 1, O], t < num_steps), their noise drawn at once."""
        raise NotImplementedError

    def _gradient(self, rollout: Rollout) -> dict[str, Tensor]:
        """The gradient of every worker's loss, summed over its steps, into `own.grad`. Returns metrics, each [K]."""
        raise NotImplementedError


class Report(NamedTuple):
    """What a worker process did until T reached its goal."""

    turns: int
    metrics: dict[str, np.ndarray]  # each [R], sums over the turns
    episodes: list[Any]
    errors: dict[int, str]
    seconds: dict[str, float]  # since it began: in its environments, in acting, in learning
    cpu_seconds: float  # since it began


class Worker:
    """One worker of R runs in a process of its own."""

    def __init__(
        self,
        learners: type[ActorLearners],
        cfg: Any,
        remake: Callable[[int], Any],
        seeds: Sequence[int],
        shared: Shared,
        index: int,
    ):
        self.envs, self.streams, self.shared = remake(1), Streams(seeds, index), shared
        self.envs.first_env = index
        self.learners = learners(cfg, self.envs, seeds, shared, self.streams, [index])

    def advance(self, goal: int, parked: np.ndarray) -> Report:
        """Take turns until T has reached `goal`. Runs that are `parked` [R] elsewhere are so here."""
        for run in np.flatnonzero(parked & ~self.envs.parked).tolist():
            self.envs.park(run)
        turns, episodes = 0, []
        metrics: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(len(parked)))
        while self.shared.env_steps < goal:
            for name, values in self.learners.turn().items():
                metrics[name] += values
            turns += 1
            now = self.shared.env_steps
            episodes += [episode._replace(env_steps=now) for episode in self.envs.drain_episodes()]
        seconds = dict(self.learners.collector.timers)
        return Report(turns, dict(metrics), episodes, self.envs.errors, seconds, time.process_time())

    def state(self) -> dict[str, Any]:
        """Everything needed to go on but what is shared."""
        return {"learners": self.learners.state(), "streams": self.streams.state(), "envs": self.envs.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.learners.load_state(state["learners"])
        self.streams.load_state(state["streams"])
        self.envs.load_state(state["envs"])


def require_workers(cfg: Any) -> None:
    """Refuse settings that no schedule can follow."""
    require(
        cfg.num_envs > 0 and cfg.num_steps > 0,
        f"num_envs is {cfg.num_envs} and num_steps is {cfg.num_steps}; they must be positive",
    )


class AsynchronousAgent:
    """R runs of W workers each, under either schedule. An algorithm adds its network, and how to act by theta.

    Resuming is exact under `serial`. Under `hogwild` everything goes on from where it was, but as differently as it
    would have without a pause; the episode under way in every environment is gone on with as well.
    """

    learners_class: ClassVar[type[ActorLearners]]
    with_target: ClassVar[bool] = False

    def __init__(self, cfg: Any, envs: Any, seeds: Sequence[int], device: str = "cpu"):
        self.cfg, self.envs, self.seeds, self.num_runs = cfg, envs, list(seeds), len(seeds)
        self.device = "cpu"  # whatever else there is: that is the paper's point
        self.reproducible = cfg.schedule == "serial"
        self.steps_per_iteration = cfg.num_envs * cfg.num_steps * (1 if self.reproducible else TURNS)  # env_steps
        self.streams = Streams(seeds)
        self.shared = Shared(cfg, self.num_runs, self._shapes(), self.with_target)
        self.parameters = self.shared.parameters
        self._initialize()
        if self.shared.target is not None:
            self.shared.target.copy_(self.parameters)
        self.timers: dict[str, float] = defaultdict(float)  # seconds, of all workers
        self.cpu_elsewhere = 0.0  # seconds, of the worker processes
        self._crew: Crew | None = None
        if self.reproducible:
            indices = range(cfg.num_envs)
            self.learners = self.learners_class(cfg, envs, seeds, self.shared, self.streams, indices)
            self.collector, self.timers = self.learners.collector, self.learners.collector.timers
        else:
            require(envs.remake is not None, "these environments cannot be made anew in another process")
            self.collector = Collector(envs, seeds, clip_actions=getattr(cfg, "clip_actions", None))  # keeps the books

    @property
    def crew(self) -> Crew:
        """The worker processes, started when first needed."""
        if self._crew is None:
            make = partial(Worker, self.learners_class, self.cfg, self.envs.remake, self.seeds, self.shared)
            self._crew = Crew(make, self.cfg.num_envs)
        return self._crew

    def iterate(self) -> dict[str, np.ndarray]:
        """A turn of every worker, or as many as they get done until T has gone on by that of `TURNS` of each. Returns
        metrics, each [R], means over the turns."""
        if self.reproducible:
            return self.learners.turn()
        goal = self.shared.env_steps + self.steps_per_iteration
        reports: list[Report] = self.crew.ask("advance", goal, self.envs.parked)
        episodes = sorted((episode for report in reports for episode in report.episodes), key=lambda e: e.env_steps)
        errors = {run: error for report in reports for run, error in report.errors.items()}
        self.envs.account(self.shared.env_steps, episodes, errors)
        for part in ("env", "act", "learn"):
            self.timers[part] = sum(report.seconds.get(part, 0.0) for report in reports)
        self.cpu_elsewhere = sum(report.cpu_seconds for report in reports)
        at_work = [report for report in reports if report.turns]
        turns = sum(report.turns for report in at_work)
        names = at_work[0].metrics
        return {name: np.sum([report.metrics[name] for report in at_work], 0) / turns for name in names}

    def close(self) -> None:
        """End the worker processes."""
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def state(self) -> dict[str, Any]:
        """Everything needed to go on; under `hogwild` the workers' environments too. The workers are between turns."""
        shared = {"shared": self.shared.state(), "streams": self.streams.state()}
        if self.reproducible:
            return shared | {"learners": self.learners.state()}
        return shared | {"workers": self.crew.ask("state")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state()` was taken."""
        self.shared.load_state(state["shared"])
        self.streams.load_state(state["streams"])
        if self.reproducible:
            self.learners.load_state(state["learners"])
        else:
            self.crew.ask_each("load_state", [(one,) for one in state["workers"]])

    def diverged(self) -> np.ndarray:
        """Runs whose weights are not finite: bool [R]."""
        return ~self.parameters.finite()

    def parameters_of(self, run: int) -> dict[str, np.ndarray]:
        """The shared weights of one run."""
        return self.parameters.of_run(run)

    # ---- what an algorithm fills in

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of its weights, per run; what makes the network is made here."""
        raise NotImplementedError

    def _initialize(self) -> None:
        """Draw theta, in `parameters`, from `streams`."""
        raise NotImplementedError
