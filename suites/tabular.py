"""Tasks with a finite number of states, each stepped as one NumPy batch over [R, N] from its table of transitions.

Observations are float32 [R, N, 1]: the index of the state. Every task has its exact `Model`, for planners and oracles.

Gymnasium's tasks (CliffWalking, FrozenLake, Taxi, Blackjack) give its numbers bit for bit: its tables, and the numbers
its generators would give one by one. Our own are two examples of the textbooks: the 4x3 grid world of Russell and
Norvig, "Artificial Intelligence: A Modern Approach", and the 19-state random walk of Sutton and Barto, "Reinforcement
Learning: An Introduction", example 7.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suites import Task
from suites.vector import Step, VectorEnv

Array = NDArray[Any]
Outcome = tuple[float, int, float, bool]  # probability, next state, reward, termination: as in Gymnasium's tables
BLOCK = 512  # random numbers drawn at a time per environment; a matter of speed only

# max_episode_steps of the tasks that have no time limit at their source. Without one, the evaluation of a policy that
# walks into a wall for ever would never end. The uniformly random policy on CliffWalking meets it in one episode of
# five (they take 6,453 steps on average); on the others it takes 3 to 100 steps.
UNLIMITED = 10_000


class Model(NamedTuple):
    """What a task does, exactly: K is the most outcomes of any state and action, the others' rows are padded with
    probability 0. A transition that terminates is worth its reward alone, whatever its next state's row says."""

    probabilities: NDArray[np.float64]  # [S, A, K]
    next_states: NDArray[np.int64]  # [S, A, K]
    rewards: NDArray[np.float64]  # [S, A, K]
    terminations: NDArray[np.bool_]  # [S, A, K]
    start: NDArray[np.float64]  # [S] distribution of the first state


def tabulate(
    num_states: int, num_actions: int, outcomes: Mapping[tuple[int, int], list[Outcome]], start: Array
) -> Model:
    """The model with these outcomes of (state, action); a state without any is an end: it stays, and pays nothing."""
    shape = num_states, num_actions, max(len(row) for row in outcomes.values())
    model = Model(np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, bool), np.array(start))
    for s, a in np.ndindex(shape[:2]):
        row = outcomes.get((s, a), [(1.0, s, 0.0, True)])
        for array, values in zip(model, zip(*row, strict=True), strict=False):
            array[s, a, : len(row)] = values
        model.next_states[s, a, len(row) :] = s
    for array in model:
        array.setflags(write=False)  # shared by all environments of the task
    return model


class Draws:
    """The random numbers of every environment, in the order in which its generator would give them one by one.

    They are drawn in blocks. Where an environment stands is its seed and how many numbers it has used.
    """

    def __init__(self, batch: int, per_word: int, draw: Callable[[np.random.Generator, int], Array]) -> None:
        self._per_word, self._draw = per_word, draw  # numbers that one step of PCG64 gives; so many of them, in order
        self._generators = [np.random.Generator(np.random.PCG64(0)) for _ in range(batch)]
        self._block = np.zeros((batch, BLOCK), draw(self._generators[0], 1).dtype)
        self._first = np.arange(batch) * BLOCK  # where an environment's row begins in the block laid flat,
        self._next = self._first.copy()  # and its next number
        self._seeds = np.zeros(batch, np.uint64)
        self._dropped = np.zeros(batch, np.int64)  # numbers used before those in the block
        self._left = 0  # every environment has at least so many left

    def seed(self, seeds: Array, used: Array | None = None) -> None:
        """Starts from `seeds` [batch], as Gymnasium's `np_random(seed)`, after the first `used` [batch] numbers."""
        self._seeds[:] = seeds
        self._dropped[:] = 0 if used is None else used
        self._next[:], self._left = self._first, BLOCK
        for i, (seed, dropped) in enumerate(zip(self._seeds.tolist(), self._dropped.tolist(), strict=True)):
            bits = np.random.PCG64(np.random.SeedSequence(seed))
            bits.advance(dropped // self._per_word)
            self._generators[i] = np.random.Generator(bits)
            self._draw(self._generators[i], dropped % self._per_word)
            self._block[i] = self._draw(self._generators[i], BLOCK)

    def take(self, who: Array | slice) -> Array:
        """The next number of each environment in `who` (no index twice)."""
        if self._left == 0:
            self._refill()
        self._left -= 1
        numbers = self._block.take(self._next[who])
        self._next[who] += 1
        return numbers

    def _refill(self) -> None:
        used = self._next - self._first
        if used.max() > BLOCK // 2:
            for i, count in enumerate(used.tolist()):
                fresh = self._draw(self._generators[i], count)
                self._block[i] = np.concatenate((self._block[i, count:], fresh))
            self._dropped += used
            self._next[:] = self._first
        self._left = BLOCK - int((self._next - self._first).max())

    def save(self) -> dict[str, Array]:
        """What `seed` takes."""
        return {"seeds": self._seeds.copy(), "used": self._dropped + self._next - self._first}


class TabularVectorEnv(VectorEnv):
    """A batch of one task, stepped from its model."""

    def __init__(self, task: Task, num_runs: int, num_envs: int) -> None:
        self.model = model(task.id)
        num_states, num_actions, num_outcomes = self.model.probabilities.shape
        super().__init__(num_runs, num_envs, (1,), task.max_episode_steps, num_actions=num_actions)
        self.num_states = num_states
        self._states = np.zeros((num_runs, num_envs), np.int64)
        # [K, S * A] laid flat: outcome k of a pair is at k * S * A + pair, the next states of its K at the same places
        self._next_states, self._rewards, self._terminations = (
            np.ascontiguousarray(table.reshape(-1, num_outcomes).T).ravel() for table in self.model[1:4]
        )
        self._num_actions, self._num_pairs = num_actions, num_states * num_actions
        # Gymnasium takes the first outcome whose cumulative probability exceeds the number drawn
        cumulative = np.cumsum(self.model.probabilities.reshape(-1, num_outcomes), 1).T  # [K, S * A]
        assert (cumulative[-1] >= 1).all()  # no number exceeds all of them
        self._bounds = np.ascontiguousarray(cumulative[:-1])
        self._cumulative_start = np.cumsum(self.model.start)
        # Where all is certain the numbers Gymnasium draws, one a step and one a reset, change nothing
        self._certain = num_outcomes == 1 and self.model.start.max() == 1
        self._draws = Draws(num_runs * num_envs, 1, lambda rng, size: rng.random(size))

    def _seed(self, seeds: list[list[int]]) -> None:
        self._draws.seed(np.array(seeds, np.uint64).ravel())

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        numbers = 0.5 if self._certain else self._draws.take(indices)
        start = np.searchsorted(self._cumulative_start, numbers, "right")
        start %= len(self._cumulative_start)  # the first state, as Gymnasium's, should rounding leave a gap below 1
        self._states.reshape(-1)[indices] = start
        observations.reshape(-1)[indices] = start

    def _advance(self, actions: Array, out: Step) -> None:
        pairs = self._states * self._num_actions + actions  # [R, N]
        outcomes = pairs
        if not self._certain:
            numbers = self._draws.take(slice(None)).reshape(pairs.shape)
            outcomes = pairs + self._num_pairs * (numbers >= self._bounds.take(pairs, 1)).sum(0)
        states = self._next_states.take(outcomes)
        if self._some_parked:
            states[self.parked] = self._states[self.parked]
        self._states = states
        out.next_observations[..., 0] = states
        self._rewards.take(outcomes, out=out.rewards)
        self._terminations.take(outcomes, out=out.terminations)

    def _save(self) -> dict[str, Any]:
        return {"states": self._states.copy(), **self._draws.save()}

    def _load(self, state: dict[str, Any]) -> None:
        self._states = np.array(state["states"])
        self._draws.seed(state["seeds"], state["used"])


# ---- our own tasks -------------------------------------------------------------------------------------------------


def grid_world() -> Model:
    """Russell and Norvig's 4x3 grid: state 4 * row + column from the top left; actions up, right, down, left.

    A move goes where it should with probability 0.8 and to either side of that with 0.1 each; the border and the wall
    stop it. Leaving a state costs 0.03, also into an end, which pays 1 or -1 on top.
    """
    rows, columns, wall, ends, step_reward = 3, 4, 5, {3: 1.0, 7: -1.0}, -0.03
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))

    def after(s: int, direction: int) -> int:
        row, column = s // columns + moves[direction][0], s % columns + moves[direction][1]
        inside = 0 <= row < rows and 0 <= column < columns
        return row * columns + column if inside and row * columns + column != wall else s

    outcomes: dict[tuple[int, int], list[Outcome]] = {}
    for s in set(range(rows * columns)) - {wall, *ends}:
        for a in range(4):
            reached = [(0.8, after(s, a)), (0.1, after(s, (a - 1) % 4)), (0.1, after(s, (a + 1) % 4))]
            outcomes[s, a] = [(p, to, step_reward + ends.get(to, 0.0), to in ends) for p, to in reached]
    return tabulate(rows * columns, 4, outcomes, np.eye(rows * columns)[8])


def random_walk() -> Model:
    """Sutton and Barto's example 7.1: states 1..19 in a row, from 10, with ends 0 and 20 that pay -1 and 1.

    One action, which leads to either neighbour with probability 1/2: V(s) = (s - 10) / 10 without discounting.
    """
    pays = {0: -1.0, 20: 1.0}
    outcomes = {(s, 0): [(0.5, to, pays.get(to, 0.0), to in pays) for to in (s - 1, s + 1)] for s in range(1, 20)}
    return tabulate(21, 1, outcomes, np.eye(21)[10])


# ---- Blackjack -----------------------------------------------------------------------------------------------------

DECK = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10])
CARDS = {card: 4 / 13 if card == 10 else 1 / 13 for card in range(1, 11)}  # drawn with replacement
STICK, HIT = 0, 1


def blackjack_state(player_sum: Any, dealer_card: Any, ace: Any) -> Any:
    """Index of Gymnasium's observation; `ace` is 0, 1 for a usable one, or 2 for a natural (an ace and a ten, dealt).

    Gymnasium shows a natural as any other 21 with a usable ace. It pays more, so it is a state of its own here.
    """
    return (player_sum * 11 + dealer_card) * 3 + ace


class BlackjackVectorEnv(VectorEnv):
    """Gymnasium's Blackjack with its keyword arguments as registered: sab=True, natural=False."""

    def __init__(self, task: Task, num_runs: int, num_envs: int) -> None:
        super().__init__(num_runs, num_envs, (1,), task.max_episode_steps, num_actions=2)
        self.model = model(task.id)
        self.num_states = len(self.model.start)
        batch = num_runs * num_envs
        self._player = np.zeros(batch, np.int64)  # sum of the cards, aces as 1
        self._ace = np.zeros(batch, bool)  # the player has one
        self._natural = np.zeros(batch, bool)
        self._dealer = np.zeros((2, batch), np.int64)  # the card that is seen and the one that is not
        self._draws = Draws(batch, 2, lambda rng, size: rng.integers(0, 2**32, size, np.uint32))

    def _below(self, who: Array, limit: int) -> Array:
        """NumPy's `integers(0, limit)` for each environment in `who`: Lemire, arXiv:1805.10941."""
        products = self._draws.take(who).astype(np.uint64) * np.uint64(limit)
        rejected = np.flatnonzero((products & np.uint64(2**32 - 1)) < 2**32 % limit)
        numbers = (products >> np.uint64(32)).astype(np.int64)
        if rejected.size:
            numbers[rejected] = self._below(who[rejected], limit)
        return numbers

    def _cards(self, who: Array) -> Array:
        return DECK[self._below(who, len(DECK))]

    def _seed(self, seeds: list[list[int]]) -> None:
        self._draws.seed(np.array(seeds, np.uint64).ravel())

    def _observe(self) -> Array:
        usable = self._ace & (self._player <= 11)
        return blackjack_state(self._player + 10 * usable, self._dealer[0], usable * (1 + self._natural))

    def _restart(self, indices: NDArray[np.int64], observations: NDArray[np.float32]) -> None:
        for k in (0, 1):
            self._dealer[k, indices] = self._cards(indices)
        first, second = self._cards(indices), self._cards(indices)
        self._player[indices] = first + second
        self._ace[indices] = (first == 1) | (second == 1)
        self._natural[indices] = self._ace[indices] & (first + second == 11)
        self._below(indices, 4)  # the suit of the dealer's card,
        self._below(indices[self._dealer[0, indices] == 10], 3)  # and whether its ten is a jack, queen or king
        observations.reshape(-1)[indices] = self._observe()[indices]

    def _advance(self, actions: Array, out: Step) -> None:
        playing = np.repeat(~self.parked, self.num_envs)
        rewards, terminations = out.rewards.reshape(-1), out.terminations.reshape(-1)
        hit = np.flatnonzero((actions.reshape(-1) == HIT) & playing)
        if hit.size:
            cards = self._cards(hit)
            self._player[hit] += cards
            self._ace[hit] |= cards == 1
            self._natural[hit] = False
            terminations[hit] = self._player[hit] > 21
            rewards[hit] = -1.0 * terminations[hit]
        stick = np.flatnonzero((actions.reshape(-1) == STICK) & playing)
        if stick.size:
            player = self._player[stick] + 10 * (self._ace[stick] & (self._player[stick] <= 11))
            dealer, natural = self._play_dealer(stick)
            rewards[stick] = np.sign(player - np.where(dealer > 21, 0, dealer))
            rewards[stick[self._natural[stick] & ~natural]] = 1.0
            terminations[stick] = True
        out.next_observations[..., 0] = self._observe().reshape(actions.shape)

    def _play_dealer(self, who: Array) -> tuple[Array, Array]:
        """Final sums of the dealer, who draws below 17, and whether it is a natural; [len(who)] each."""
        cards, ace = self._dealer[:, who].sum(0), (self._dealer[:, who] == 1).any(0)
        natural = ace & (cards == 11)
        while (low := np.flatnonzero((cards < 17) & ~(ace & (cards >= 7) & (cards <= 11)))).size:
            drawn = self._cards(who[low])
            cards[low] += drawn
            ace[low] |= drawn == 1
        return cards + 10 * (ace & (cards <= 11)), natural

    def _save(self) -> dict[str, Any]:
        hands = {name: getattr(self, f"_{name}").copy() for name in ("player", "ace", "natural", "dealer")}
        return {**hands, **self._draws.save()}

    def _load(self, state: dict[str, Any]) -> None:
        for name in ("player", "ace", "natural", "dealer"):
            getattr(self, f"_{name}")[:] = state[name]
        self._draws.seed(state["seeds"], state["used"])


@cache
def dealer_sums(cards: int, ace: bool) -> dict[int, float]:
    """Distribution of the dealer's final sum, 0 for bust, from the sum of its cards (aces as 1)."""
    total = cards + 10 * (ace and cards <= 11)
    if total >= 17:
        return {total if total <= 21 else 0: 1.0}
    sums: dict[int, float] = {}
    for card, p in CARDS.items():
        for final, q in dealer_sums(cards + card, ace or card == 1).items():
            sums[final] = sums.get(final, 0.0) + p * q
    return sums


def blackjack() -> Model:
    """Blackjack with exact probabilities, of the states of `blackjack_state`; those that cannot be are ends."""
    outcomes: dict[tuple[int, int], list[Outcome]] = {}
    start = np.zeros(32 * 11 * 3)
    for seen in CARDS:
        for player, ace in [*((n, 0) for n in range(4, 22)), *((n, 1) for n in range(12, 22)), (21, 2)]:
            state = int(blackjack_state(player, seen, ace))
            chances = dict.fromkeys((-1.0, 0.0, 1.0), 0.0)  # reward -> probability
            for hidden, p in CARDS.items():
                for final, q in dealer_sums(seen + hidden, 1 in (seen, hidden)).items():
                    wins = ace == 2 and {seen, hidden} != {1, 10}
                    chances[1.0 if wins else float(np.sign(player - final))] += p * q
            outcomes[state, STICK] = [(p, state, reward, True) for reward, p in chances.items() if p]
            outcomes[state, HIT] = []
            for card, p in CARDS.items():
                cards = player - 10 * (ace > 0) + card  # aces as 1
                usable = cards <= 11 and (ace > 0 or card == 1)
                to = int(blackjack_state(cards + 10 * usable, seen, int(usable)))
                outcomes[state, HIT].append((p, to, -1.0 if cards > 21 else 0.0, cards > 21))
        for first, p in CARDS.items():
            for second, q in CARDS.items():
                ace = (1 in (first, second)) + ({first, second} == {1, 10})
                start[blackjack_state(first + second + 10 * (ace > 0), seen, ace)] += CARDS[seen] * p * q
    return tabulate(len(start), 2, outcomes, start)


# ---- what there is -------------------------------------------------------------------------------------------------

TASKS = {
    task.id: task
    for task in (
        Task("GridWorld4x3-v0", "tabular", UNLIMITED, steps=50_000),
        Task("CliffWalking-v1", "tabular", UNLIMITED, steps=100_000),
        Task("FrozenLake4x4-v1", "tabular", 100, steps=500_000, env_kwargs={"map_name": "4x4", "is_slippery": True}),
        Task("FrozenLake8x8-v1", "tabular", 200, steps=1_000_000, env_kwargs={"map_name": "8x8", "is_slippery": True}),
        Task("Taxi-v4", "tabular", 200, steps=500_000),
        Task("RandomWalk19-v0", "tabular", UNLIMITED, steps=10_000),
        Task("Blackjack-v1", "tabular", UNLIMITED, steps=500_000, env_kwargs={"sab": True, "natural": False}),
    )
}
SUITES = {"tabular": list(TASKS)}
PACKAGES = ("gymnasium", "numpy")  # whose versions can change the numbers
OWN = {"GridWorld4x3-v0": grid_world, "RandomWalk19-v0": random_walk, "Blackjack-v1": blackjack}
GYMNASIUM_IDS = {"FrozenLake4x4-v1": "FrozenLake-v1"}  # where Gymnasium's is another


@cache
def model(task_id: str) -> Model:
    """The exact model of a task; Gymnasium's own tables where it has them."""
    if task_id in OWN:
        return OWN[task_id]()
    import gymnasium

    task_kwargs = TASKS[task_id].env_kwargs
    env: Any = gymnasium.make(GYMNASIUM_IDS.get(task_id, task_id), disable_env_checker=True, **task_kwargs).unwrapped
    outcomes = {(s, a): row for s, actions in env.P.items() for a, row in actions.items()}
    return tabulate(len(env.P), env.action_space.n, outcomes, env.initial_state_distrib)


def make(task: Task, num_runs: int, num_envs: int, num_threads: int = 1) -> VectorEnv:
    """Environments [num_runs, num_envs] of one tabular task; one batch, so `num_threads` has no use here."""
    kind = BlackjackVectorEnv if task.id == "Blackjack-v1" else TabularVectorEnv
    return kind(task, num_runs, num_envs)
