"""Environments [R, N]: R runs of N environments each, and the bookkeeping every family of tasks shares.

Time limits, automatic reset, episode statistics, parking and saving live here, once. A family fills in how its
environments are seeded, restarted, advanced and saved (the methods at the end of `VectorEnv`).

An environment's randomness comes from its run's seed and its own index n alone, so a run's environments never depend on
R, on the run's position or on the other runs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PURPOSE = zlib.crc32(b"environment")  # keeps these streams apart from a run's other ones


def environment_seed(seed: int, n: int) -> int:
    """Seed of a run's n-th environment: what `env.reset(seed=...)` of Gymnasium takes for the same episodes."""
    return int(np.random.SeedSequence((seed, PURPOSE, n)).generate_state(1, np.uint64)[0])


class Step(NamedTuple):
    """Outcome of one step of all environments. The arrays are fresh: the caller may keep them."""

    observations: NDArray[np.float32]  # [R, N, O] what to act on next: after a reset where an episode ended
    rewards: NDArray[np.float64]  # [R, N]
    next_observations: NDArray[np.float32]  # [R, N, O] the true successor, before any reset
    terminations: NDArray[np.bool_]  # [R, N] the task ended: the successor is worth nothing
    truncations: NDArray[np.bool_]  # [R, N] the time limit cut; both may be set in one step, as in Gymnasium


class Episode(NamedTuple):
    """A finished episode."""

    run: int
    env_steps: int  # decisions of its run when it ended
    episode_return: float  # raw, undiscounted
    episode_length: int  # env_steps


class VectorEnv:
    """Environments [R, N] of one task, reset in the same step in which an episode ends.

    Actions are int64 [R, N] (`num_actions` of them) or float32 [R, N, *action_shape]. The latter reach the task as they
    are, also outside [`action_low`, `action_high`], and it does with them what Gymnasium's does: MuJoCo clamps the
    control, while the rewards of its tasks charge for the action itself. Whoever wants them clipped does it before.

    A run is parked, and the others go on unharmed, when one of its environments raises, when its actions are non-finite
    or outside the discrete set, or by `park`. It is then no longer stepped: its last observations, rewards 0, no
    episode ends. `errors` says why, run index -> message.
    """

    first_env = 0  # index n of a run's first environment here: where others of its environments live elsewhere
    remake: Callable[[int], VectorEnv] | None = None  # num_envs -> the same task for as many runs; can be pickled
    observation_dtype: type[np.generic] = np.float32  # what observations fit into without loss; uint8 saves memory
    num_states: int | None = None  # on tables: the observation is the index of the state, 0..num_states - 1,
    model: Any = None  # and this what the task does, exactly (suites.tabular.Model)
    observation_low: NDArray[np.float64] | None = None  # [O], where the task bounds its observations
    observation_high: NDArray[np.float64] | None = None

    def __init__(
        self,
        num_runs: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        max_episode_steps: int,
        *,
        num_actions: int | None = None,
        action_low: NDArray[np.float32] | None = None,
        action_high: NDArray[np.float32] | None = None,
    ) -> None:
        self.num_runs, self.num_envs = num_runs, num_envs
        self.observation_shape = observation_shape
        self.max_episode_steps = max_episode_steps
        self.num_actions = num_actions
        self.action_low, self.action_high = action_low, action_high
        self.action_shape = None if action_low is None else action_low.shape

        shape = (num_runs, num_envs)
        self.env_steps = 0  # decisions per run since reset
        self.parked = np.zeros(num_runs, bool)
        self._some_parked = False
        self.errors: dict[int, str] = {}
        self._ready = False
        self._observations = np.zeros((*shape, *observation_shape), np.float32)
        self._elapsed = np.zeros(shape, np.int64)  # env_steps of the episode under way
        self._returns = np.zeros(shape)  # its reward so far
        self._episodes: list[Episode] = []

    # -- what the algorithms and the driver use

    def reset(self, seeds: Sequence[int]) -> NDArray[np.float32]:
        """Starts all environments afresh, unparks all runs. `seeds`: one non-negative int per run -> [R, N, O]."""
        if len(seeds) != self.num_runs or min(seeds) < 0:
            raise ValueError(f"seeds are {list(seeds)}: give one non-negative int for each of {self.num_runs} runs.")
        indices = range(self.first_env, self.first_env + self.num_envs)
        self._seed([[environment_seed(int(seed), n) for n in indices] for seed in seeds])
        self.env_steps = 0
        self.parked[:] = self._some_parked = False
        self.errors, self._episodes = {}, []
        self._elapsed[:], self._returns[:], self._observations[:] = 0, 0, 0
        self._restart(np.arange(self.num_runs * self.num_envs), self._observations)
        self._ready = True
        return self._observations.copy()

    def step(self, actions: NDArray[Any]) -> Step:
        """Every environment decides once. Raises ValueError when `actions` has the wrong shape or kind."""
        if not self._ready:
            raise RuntimeError("step came before the first reset: call reset(seeds) or load_state first.")
        actions = self._checked(actions)
        shape = self._returns.shape
        out = Step(
            np.empty_like(self._observations),
            np.zeros(shape),
            np.empty_like(self._observations),
            np.zeros(shape, bool),
            np.empty(shape, bool),
        )
        self._advance(actions, out)
        self.env_steps += self.num_envs
        self._elapsed += ~self.parked[:, None] if self._some_parked else 1
        np.greater_equal(self._elapsed, self.max_episode_steps, out=out.truncations)
        if self._some_parked:  # also undoes what the first environments did of a run that failed just now
            out.next_observations[self.parked] = self._observations[self.parked]
            out.rewards[self.parked] = 0.0
            out.terminations[self.parked] = out.truncations[self.parked] = False
        self._returns += out.rewards
        out.observations[:] = out.next_observations
        ended = (out.terminations | out.truncations).ravel().nonzero()[0]
        if ended.size:
            returns, elapsed = self._returns.reshape(-1), self._elapsed.reshape(-1)
            finished = zip(ended.tolist(), returns[ended].tolist(), elapsed[ended].tolist(), strict=True)
            self._episodes += [Episode(i // self.num_envs, self.env_steps, total, n) for i, total, n in finished]
            returns[ended], elapsed[ended] = 0.0, 0
            self._restart(ended, out.observations)
        self._observations[:] = out.observations
        return out

    def random_actions(self, stream: np.random.Generator, *leading: int) -> NDArray[Any]:
        """Actions uniform over the set or the box, [*leading] or [*leading, *action_shape]."""
        if self.action_low is None or self.action_high is None:
            assert self.num_actions is not None
            return stream.integers(0, self.num_actions, leading)
        return stream.uniform(self.action_low, self.action_high, (*leading, *self.action_low.shape)).astype(np.float32)

    def drain_episodes(self) -> list[Episode]:
        """Episodes finished since the last call, in order of time, run and environment."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def account(self, env_steps: int, episodes: Iterable[Episode], errors: Mapping[int, str]) -> None:
        """Takes over the books of environments that were stepped elsewhere in place of these: what all of a run's made
        in all, the episodes since the last call, and why runs were parked."""
        self.env_steps = env_steps
        self._episodes += episodes
        for run, error in errors.items():
            self.park(run, error)

    def park(self, run: int, error: str | None = None) -> None:
        """Takes a run out; with `error`, says why in `errors`."""
        self.parked[run] = self._some_parked = True
        if error is not None:
            self.errors.setdefault(run, error)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly, in another process too.

        Nested dicts of arrays, numbers, strings and lists; generator states hold integers of 128 bits.
        """
        return {
            "env_steps": self.env_steps,
            "observations": self._observations.copy(),
            "elapsed": self._elapsed.copy(),
            "returns": self._returns.copy(),
            "parked": self.parked.copy(),
            "errors": {str(run): message for run, message in self.errors.items()},
            "episodes": [list(episode) for episode in self._episodes],
            "environments": self._save(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from `state()`. Raises ValueError when it was taken from other numbers of runs or environments."""
        if np.shape(state["observations"]) != self._observations.shape:
            raise ValueError(
                f"state is for observations {np.shape(state['observations'])}, not {self._observations.shape}, "
                "[runs, envs, ...]: make the environments with the sizes they had when it was saved."
            )
        self.env_steps = int(state["env_steps"])
        self._observations[:] = state["observations"]
        self._elapsed[:] = state["elapsed"]
        self._returns[:] = state["returns"]
        self.parked[:] = state["parked"]
        self._some_parked = bool(self.parked.any())
        self.errors = {int(run): str(message) for run, message in state["errors"].items()}
        self._episodes = [Episode(int(r), int(s), float(g), int(n)) for r, s, g, n in state["episodes"]]
        self._load(state["environments"])
        self._ready = True

    def close(self) -> None:
        """Frees what the family holds (threads)."""

    # -- what a family of tasks fills in; a failure inside one environment is `self.park(run, message)`

    def _seed(self, seeds: list[list[int]]) -> None:
        """Sets the generators from `seeds` [R][N] as Gymnasium's `np_random(seed)` would."""
        raise NotImplementedError

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        """Resets the environments r * N + n in `indices`, in that order; writes their rows of `observations`."""
        raise NotImplementedError

    def _advance(self, actions: NDArray[Any], out: Step) -> None:
        """Steps the environments of runs that are not parked: writes their `next_observations`, `rewards` (now 0) and
        `terminations` (now False) into `out`; rows of parked runs do not matter."""
        raise NotImplementedError

    def _save(self) -> dict[str, Any]:
        """Exact state of environments and generators."""
        raise NotImplementedError

    def _load(self, state: dict[str, Any]) -> None:
        raise NotImplementedError

    # -- inside

    def _checked(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Actions of the right shape and kind; parks the runs whose actions make no sense."""
        actions, batch = np.asarray(actions), self._returns.shape
        if self.action_low is None or self.action_high is None:
            self._demand(actions, "iu", batch)
            actions = actions.astype(np.int64, copy=False)
            assert self.num_actions is not None
            good = actions.view(np.uint64) < self.num_actions  # a negative action is a huge one as uint64
        else:
            self._demand(actions, "f", (*batch, *self.action_low.shape))
            actions = actions.astype(np.float32, copy=False)
            good = np.isfinite(actions)
        if not good.all():
            bad = ~good.reshape(self.num_runs, -1).all(1)
            rule = f"they must lie in 0..{self.num_actions - 1}" if self.num_actions else "they must be finite"
            for run in np.flatnonzero(bad & ~self.parked).tolist():
                self.park(run, f"actions of run {run} are {actions[run].tolist()}: {rule}; the run is parked.")
            actions = actions.copy()
            actions[bad] = 0
        return actions

    @staticmethod
    def _demand(actions: NDArray[Any], kinds: str, shape: tuple[int, ...]) -> None:
        if actions.shape != shape or actions.dtype.kind not in kinds:
            kind = "floats" if kinds == "f" else "integers"
            raise ValueError(f"actions are {actions.dtype}{list(actions.shape)}: this task takes {kind} {list(shape)}.")
