"""Learning on tables: the books' loops in plain Python against the batched ones, updates by hand, known limits."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from cases import make

import algorithms
import suites
from algorithms import sarsa, td_n
from algorithms.common import tabular
from algorithms.common.config import load_config, stack
from algorithms.common.streams import Streams, generator
from suites.tabular import Model, model
from suites.vector import Step, VectorEnv

inf = float("inf")
LEARNERS = ["monte_carlo", "q_learning", "sarsa", "td_n"]
CLIFF, GRID, WALK, CARDS = "CliffWalking-v1", "GridWorld4x3-v0", "RandomWalk19-v0", "Blackjack-v1"
START = 36  # of the cliff; its actions are up, right, down, left
SEEDS = [11, 12, 13, 14]


def agent_of(algorithm: str, task: str, runs: list[dict[str, Any]], seeds: list[int], limit: int = 10_000) -> Any:
    """An agent whose environments are cut after `limit` steps."""
    cfg = stack([load_config(algorithm, None, run) for run in runs])
    envs = suites.make(task, len(runs), cfg.num_envs)
    envs.max_episode_steps = limit
    return algorithms.load(algorithm).Agent(cfg, envs, seeds)


# ------------------------------------------------------------------------------------ the books' loops, in plain Python
class Literal:
    """One run, one number at a time: its environments as plain numbers, its draws one by one."""

    def __init__(self, task: str, cfg: Any, seed: int, limit: int):
        self.cfg, self.num_envs = cfg, cfg.num_envs
        self.envs = suites.make(task, 1, cfg.num_envs)
        self.envs.max_episode_steps = limit
        self.states = [int(s) for s in self.envs.reset([seed])[0, :, 0]]
        self.seed, self.num_actions = seed, self.envs.num_actions
        self.q: dict[tuple[int, ...], float] = defaultdict(float)  # by table, state, action
        self.visits: dict[tuple[int, ...], int] = defaultdict(int)
        self.actions = generator(seed, "actions")
        self.tables = generator(seed, "tables")

    def step(self, actions: list[int]) -> list[tuple[float, int, bool, bool]]:
        """Of each environment: reward, next state, whether the task ended there, whether the episode did."""
        self.took = self.envs.step(np.array([actions]))
        rows = self.took.rewards, self.took.next_observations[..., 0], self.took.terminations, self.took.truncations
        return [(float(r), int(s), bool(d), bool(d or c)) for r, s, d, c in zip(*(row[0] for row in rows), strict=True)]

    def next_states(self) -> list[int]:
        return [int(s) for s in self.took.observations[0, :, 0]]

    def epsilon(self, env_steps: int) -> float:
        cfg = self.cfg
        return cfg.epsilon + (cfg.epsilon_end - cfg.epsilon) * min(env_steps / cfg.epsilon_steps, 1.0)

    def noise(self, rng: np.random.Generator) -> tuple[float, list[float]]:
        first, *others = (1.0 - rng.random() for _ in range(1 + self.num_actions))
        return first, others

    def row(self, table: int, state: int) -> list[float]:
        return [self.q[table, state, a] for a in range(self.num_actions)]

    def pick(self, row: list[float], explore: bool, noise: list[float]) -> int:
        allowed = [a for a, value in enumerate(row) if explore or value == max(row)]
        return max(allowed, key=lambda a: noise[a])

    def soft(self, row: list[float], epsilon: float) -> float:
        total = 0.0
        for value in row:
            total += value
        return (1.0 - epsilon) * max(row) + epsilon * (total / len(row))

    def move(self, table: int, state: int, action: int, target: float) -> None:
        place = table, state, action
        self.visits[place] += 1
        size = 1.0 / self.visits[place] if self.cfg.sample_average else self.cfg.alpha
        self.q[place] += size * (target - self.q[place])

    def array(self, values: dict[tuple[int, ...], float], *shape: int) -> np.ndarray:
        found = np.zeros(shape)
        for place, value in values.items():
            found[place] = value
        return found


def literal_q_learning(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Sections 6.5 and 6.7."""
    cfg, count = run.cfg, 1 + run.cfg.double
    for t in range(num_steps):
        actions = []
        for state in run.states:
            explore, noise = run.noise(run.actions)
            row = run.row(0, state)
            if cfg.double:
                row = [(one + other) / 2 for one, other in zip(row, run.row(1, state), strict=True)]
            actions.append(run.pick(row, explore <= run.epsilon(t * run.num_envs), noise))
        for state, action, (reward, after, terminated, _) in zip(run.states, actions, run.step(actions), strict=True):
            which, ties = run.noise(run.tables) if cfg.double else (1.0, [])
            table = int(which <= 0.5)
            value = max(run.row(table, after))
            if cfg.double:
                value = run.q[1 - table, after, run.pick(run.row(table, after), False, ties)]
            run.move(table, state, action, reward + cfg.gamma * (0.0 if terminated else value))
        run.states = run.next_states()
    shape = count, run.envs.num_states, run.num_actions
    return {"q_values": run.array(run.q, *shape), "visits": run.array(run.visits, *shape)}


def literal_sarsa(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Sections 6.4 and 6.6."""
    cfg, actions = run.cfg, []
    for state in run.states:
        explore, noise = run.noise(run.actions)
        actions.append(run.pick(run.row(0, state), explore <= run.epsilon(0), noise))
    for t in range(num_steps):
        outcomes = run.step(actions)
        epsilon = run.epsilon((t + 1) * run.num_envs)
        draws = [run.noise(run.actions) for _ in outcomes]
        chosen = [
            run.pick(run.row(0, after), explore <= epsilon, noise)
            for (explore, noise), (_, after, _, _) in zip(draws, outcomes, strict=True)
        ]
        for n, (reward, after, terminated, _) in enumerate(outcomes):
            value = run.soft(run.row(0, after), epsilon) if cfg.expected else run.q[0, after, chosen[n]]
            run.move(0, run.states[n], actions[n], reward + cfg.gamma * (0.0 if terminated else value))
        run.states = run.next_states()
        for n, (explore, noise) in enumerate(draws):
            if outcomes[n][3]:
                chosen[n] = run.pick(run.row(0, run.states[n]), explore <= epsilon, noise)
        actions = chosen
    shape = 1, run.envs.num_states, run.num_actions
    return {"q_values": run.array(run.q, *shape)[0], "visits": run.array(run.visits, *shape)[0]}


def literal_monte_carlo(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Section 5.4."""
    cfg = run.cfg
    episodes: list[list[tuple[int, int, float]]] = [[] for _ in run.states]
    for t in range(num_steps):
        epsilon, actions = run.epsilon(t * run.num_envs), []
        for state in run.states:
            explore, noise = run.noise(run.actions)
            actions.append(run.pick(run.row(0, state), explore <= epsilon, noise))
        for n, (reward, after, terminated, ended) in enumerate(run.step(actions)):
            episodes[n].append((run.states[n], actions[n], reward))
            if ended:
                value = 0.0 if terminated else run.soft(run.row(0, after), epsilon)
                while episodes[n]:
                    s, a, r = episodes[n].pop()
                    value = r + cfg.gamma * value
                    if cfg.every_visit or (s, a) not in [step[:2] for step in episodes[n]]:
                        run.move(0, s, a, value)
        run.states = run.next_states()
    shape = 1, run.envs.num_states, run.num_actions
    return {"q_values": run.array(run.q, *shape)[0], "visits": run.array(run.visits, *shape)[0]}


def literal_td_n(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Section 7.1: each return is summed anew from the rewards of its episode."""
    cfg, n = run.cfg, int(run.cfg.n)
    values: dict[tuple[int, ...], float] = defaultdict(float)
    visited: list[list[int]] = [[state] for state in run.states]  # S_0, S_1, ...
    rewards: list[list[float]] = [[0.0] for _ in run.states]  # -, R_1, R_2, ...
    for _ in range(num_steps):
        actions = [int(run.actions.random() * run.num_actions) for _ in run.states]
        for e, (reward, after, terminated, ended) in enumerate(run.step(actions)):
            visited[e].append(after)
            rewards[e].append(reward)
            now = len(visited[e]) - 1
            for tau in range(now - n if not ended else max(0, now - n), now if ended else now - n + 1):
                if tau < 0:
                    continue
                target, power = 0.0, 1.0
                for i in range(tau + 1, min(tau + n, now) + 1):
                    target += power * rewards[e][i]
                    power *= cfg.gamma
                if not (ended and terminated):
                    target += power * values[(after,)]
                values[(visited[e][tau],)] += cfg.alpha * (target - values[(visited[e][tau],)])
        run.states = run.next_states()
        for e, state in enumerate(run.states):
            if run.took.terminations[0, e] or run.took.truncations[0, e]:
                visited[e], rewards[e] = [state], [0.0]
    return {"state_values": run.array(values, run.envs.num_states)}


EXPLORING = [{}, {"epsilon": 0.3, "gamma": 0.9}, {"epsilon": 1.0, "epsilon_end": 0.05, "epsilon_steps": 300.0}]
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "q_learning": [*EXPLORING, {"sample_average": 1.0}],
    "sarsa": [*EXPLORING, {"expected": 1.0}, {"expected": 1.0, "epsilon": 0.4, "sample_average": 1.0}],
    "monte_carlo": [*EXPLORING, {"every_visit": 1.0}, {"every_visit": 1.0, "sample_average": 0.0, "gamma": 0.9}],
    "td_n": [{"n": 1.0}, {"n": 3.0, "gamma": 0.9}, {}, {"n": 50.0, "alpha": 0.1}, {"n": 8.0, "gamma": 0.5}],
}
LITERALS = {
    "q_learning": literal_q_learning, "sarsa": literal_sarsa, "monte_carlo": literal_monte_carlo, "td_n": literal_td_n,
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "num_envs", "limit"), [(GRID, 1, 10_000), (GRID, 3, 9), (CLIFF, 1, 40), (CARDS, 2, 2)]
)
@pytest.mark.parametrize("algorithm", [*LEARNERS, "double"])
def test_equals_the_books_loop(algorithm: str, task: str, num_envs: int, limit: int) -> None:
    """The same draws give the same tables, bit for bit, however episodes end."""
    common: dict[str, Any] = {"num_envs": num_envs} | ({"double": True} if algorithm == "double" else {})
    algorithm = "q_learning" if algorithm == "double" else algorithm
    runs = [run | common for run in VARIANTS[algorithm]]
    agent = agent_of(algorithm, task, runs, list(range(len(runs))), limit)
    for _ in range(4):
        agent.iterate()
    for seed, run in enumerate(runs):
        literal = Literal(task, load_config(algorithm, None, run), seed, limit)
        for name, table in LITERALS[algorithm](literal, 4 * tabular.STEPS).items():
            assert table.any()
            assert np.array_equal(agent.parameters_of(seed)[name], table), f"{name} of {run}"


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_the_length_of_an_iteration_does_not_matter(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = []
    for steps in (1, 7, 100):
        monkeypatch.setattr(tabular, "STEPS", steps)
        monkeypatch.setattr(algorithms.load(algorithm), "STEPS", steps)
        agent = agent_of(algorithm, GRID, VARIANTS[algorithm][:3], [1, 2, 3], 20)
        for _ in range(700 // steps):
            agent.iterate()
        states.append(agent.state())
    for name in agent.parameters_of(0):
        assert np.array_equal(states[0][name], states[1][name]) and np.array_equal(states[0][name], states[2][name])


# ------------------------------------------------------------------------------------------------------ choices by hand
def test_choose_by_hand() -> None:
    q_values = np.array([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [np.nan] * 3])
    noise = np.array([[0.9, 0.1, 0.2], [0.9, 0.2, 0.1], [0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    explore = np.array([False, False, False, True, False])[:, None]
    assert tabular.choose(q_values, explore, noise).tolist() == [2, 1, 1, 0, 0]


def test_epsilon_greedy_has_the_probabilities_it_should() -> None:
    """Of four actions the two greedy ones share 1 - epsilon, and all share epsilon."""
    explore, noise = tabular.exploration(Streams([0, 1]), np.full((40_000, 2), [0.2, 0.0]), 1, 4)
    chosen = tabular.choose(np.array([0.0, 5.0, 5.0, -1.0]), explore, noise)[..., 0]  # [T, R]
    shares = np.array([[(chosen[:, run] == a).mean() for a in range(4)] for run in range(2)])
    assert np.abs(shares[0] - [0.05, 0.45, 0.45, 0.05]).max() < 0.01  # four standard errors
    assert np.abs(shares[1] - [0.0, 0.5, 0.5, 0.0]).max() < 0.01 and shares[1, 0] == shares[1, 3] == 0
    everywhere = tabular.exploration(Streams([0]), np.ones((1000, 1)), 1, 4)[0]
    assert everywhere.all()


def test_soft_values_by_hand() -> None:
    assert tabular.soft_values(np.array([5.0, 2.0, 0.0, 1.0]), np.array(0.4)) == pytest.approx(0.6 * 5 + 0.4 * 2)


# ------------------------------------------------------------------------------------------------------ updates by hand
@pytest.mark.parametrize(
    ("algorithm", "settings", "expected"),
    [
        ("q_learning", {}, 1 + 0.5 * (-1 + 0.9 * 5 - 1)),
        ("q_learning", {"sample_average": 1.0}, -1 + 0.9 * 5),  # the first visit counts in full
        ("sarsa", {}, 1 + 0.5 * (-1 + 0.9 * 5 - 1)),
        ("sarsa", {"expected": 1.0, "epsilon_end": 0.8, "epsilon_steps": 1.0}, 1 + 0.5 * (-1 + 0.9 * 2.6 - 1)),
    ],
)
def test_an_update_by_hand(
    algorithm: str, settings: dict[str, Any], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step up the cliff's left side, from a state worth 1 to actions worth 5, 2, 0 and 1."""
    monkeypatch.setattr(tabular, "STEPS", 1)
    monkeypatch.setattr(algorithms.load(algorithm), "STEPS", 1)
    agent = agent_of(algorithm, CLIFF, [{"gamma": 0.9, "epsilon": 0.0, "alpha": 0.5} | settings], [0])
    q_values = np.zeros((48, 4))
    q_values[START, 0], q_values[START - 12] = 1, (5, 2, 0, 1)
    state = agent.state() | {"q_values": q_values.reshape(agent.q_values.shape)}
    agent.load_state(state | ({"actions": np.array([[0]])} if algorithm == "sarsa" else {}))
    metrics = agent.iterate()
    assert agent.observations.tolist() == [[[START - 12]]]
    found = agent.parameters_of(0)
    assert found["q_values"].reshape(48, 4)[START, 0] == pytest.approx(expected)
    assert found["visits"].sum() == 1
    assert metrics["td_errors"][0] == pytest.approx((expected - 1) / (1 if "sample_average" in settings else 0.5))


def test_double_q_learning_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """One table says which action is best, 0 or 2; the other one says that it is worth 7 or 3."""
    monkeypatch.setattr(tabular, "STEPS", 1)
    monkeypatch.setattr(algorithms.load("q_learning"), "STEPS", 1)
    settings = {"gamma": 0.9, "epsilon": 0.0, "alpha": 0.5, "double": True}
    agent = agent_of("q_learning", CLIFF, [settings] * 20, list(range(20)))
    q_values = np.zeros((2, 48, 4))
    q_values[:, START, 0], q_values[:, START - 12] = 1, ((5, 2, 0, 3), (7, 0, 8, 1))
    agent.load_state(agent.state() | {"q_values": np.repeat(q_values[None], 20, 0)})
    agent.iterate()
    found = agent.q_values[:, :, START, 0].tolist()
    first, second = [1 + 0.5 * (-1 + 0.9 * 7 - 1), 1.0], [1.0, 1 + 0.5 * (-1 + 0.9 * 0 - 1)]
    assert all(pair in (pytest.approx(first), pytest.approx(second)) for pair in found)
    assert 4 <= sum(pair == pytest.approx(first) for pair in found) <= 16


def test_monte_carlo_by_hand() -> None:
    """An episode that visits (0, 1) twice: pairs (0, 1), (2, 0), (0, 1) with rewards 1, 2, 4 and gamma 1/2."""
    runs = [{"gamma": 0.5}, {"gamma": 0.5, "every_visit": 1.0}, {"gamma": 0.5, "sample_average": 0.0, "alpha": 0.1}]
    agent = agent_of("monte_carlo", GRID, runs, [0, 1, 2])
    for run in range(3):
        agent.lengths[run, 0] = 3
        agent.visited[run, 0, :3], agent.taken[run, 0, :3], agent.rewards[run, 0, :3] = [0, 2, 0], [1, 0, 1], [1, 2, 4]
    errors = [agent._learn(run, 0, following) for run, following in enumerate((0.0, 0.0, 8.0))]
    assert errors == [
        [4, 3],
        [4, 4, -1],
        [6, 4],
    ]  # returns: 3, 4, 4; with 8 to follow: 4, 6, 8, the last no first visit
    assert agent.q_values[:, 0, 1].tolist() == pytest.approx([3, 3.5, 0.4])
    assert agent.q_values[:, 2, 0].tolist() == pytest.approx([4, 4, 0.6])
    assert agent.lengths.tolist() == [[0]] * 3


# -------------------------------------------------------------------------------------------------------- known limits
def soft_optimum(task: Model, epsilon: float, sweeps: int = 3000) -> np.ndarray:
    """Q [S, A] of the best epsilon-soft policy without discounting, by dynamic programming."""
    q_values = np.zeros(task.rewards.shape[:2])
    for _ in range(sweeps):
        values = np.where(task.terminations, 0.0, tabular.soft_values(q_values, np.array(epsilon))[task.next_states])
        q_values = (task.probabilities * (task.rewards + values)).sum(-1)
    return q_values


def iterate(agent: Any, num_steps: int) -> None:
    for _ in range(num_steps // tabular.STEPS):
        agent.iterate()


def test_q_learning_finds_the_shortest_path() -> None:
    agent = agent_of("q_learning", CLIFF, [{"alpha": 1.0}, {}] * 10, list(range(20)))
    iterate(agent, 15_000)
    envs = suites.make(CLIFF, 20, 1)
    observations = envs.reset([0] * 20)
    assert np.abs(agent.values(observations) - -13).max() < 0.1
    assert (agent.values(observations)[::2] == -13).all()  # alpha = 1 is exact here, where nothing is left to chance
    for _ in range(13):
        observations = envs.step(agent.act(observations)).observations
    assert [episode.episode_return for episode in envs.drain_episodes()] == [-13] * 20


def test_expected_sarsa_finds_the_best_soft_policy() -> None:
    """Exactly, as nothing but its own actions is left to chance: the value is that of classic_published.csv."""
    worth = tabular.soft_values(soft_optimum(model(CLIFF), 0.1)[START], np.array(0.1))
    assert worth == pytest.approx(-20.71, abs=0.005)
    agent = agent_of("sarsa", CLIFF, [{"expected": 1.0, "alpha": 1.0}] * 10, list(range(10)))
    iterate(agent, 30_000)
    found = tabular.soft_values(agent.q_values[:, START], np.array(0.1))
    assert np.abs(found - worth).max() < 0.1


def test_sarsa_nears_the_best_soft_policy() -> None:
    """While learning it earns about as much as that, and more than Q-learning, which walks along the edge."""
    earned = {}
    for algorithm in ("sarsa", "q_learning"):
        agent = agent_of(algorithm, CLIFF, [{"alpha": 0.1}] * 50, list(range(50)))
        iterate(agent, 20_000)
        agent.envs.drain_episodes()
        iterate(agent, 5000)
        earned[algorithm] = float(np.mean([episode.episode_return for episode in agent.envs.drain_episodes()]))
    assert -20.71 - 4 < earned["sarsa"] < -20.71 + 0.5
    assert -51.81 - 1.5 < earned["q_learning"] < -45.8 + 1.5  # between the two ways to break ties


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("q_learning", {"alpha": 0.05}),
        ("q_learning", {"alpha": 0.1, "double": True}),
        ("sarsa", {"alpha": 0.05, "epsilon_steps": 20_000.0}),
        ("sarsa", {"alpha": 0.05, "epsilon_steps": 20_000.0, "expected": 1.0}),
        ("monte_carlo", {}),
    ],
)
def test_control_finds_a_good_way_through_the_grid(algorithm: str, settings: dict[str, Any]) -> None:
    """Of most runs the greedy policy's exact value is near the best one's, 0.772 from the start."""
    agent = agent_of(algorithm, GRID, [settings] * 10, list(range(10)))
    iterate(agent, 25_000)
    task, worth = model(GRID), []
    states = np.arange(12)
    policy = agent.act(np.repeat(states[None, :, None], 10, 0).astype(np.float32))  # [R, S]
    for actions in policy:
        moves = np.zeros((12, 12))
        share = np.where(task.terminations, 0.0, task.probabilities)[states, actions]
        np.add.at(moves, (states[:, None], task.next_states[states, actions]), share)
        rewards = (task.probabilities * task.rewards).sum(-1)[states, actions]
        worth.append(np.linalg.solve(np.eye(12) - 0.9999 * moves, rewards)[8])
    assert np.median(worth) > 0.74 and max(worth) < 0.773


def test_expected_sarsa_without_exploration_is_q_learning() -> None:
    """In Blackjack, where no state follows itself: there what is learned from a step cannot change the next action."""
    agents = [
        agent_of("q_learning", CARDS, [{"epsilon": 0.0}] * 3, [1, 2, 3]),
        agent_of("sarsa", CARDS, [{"epsilon": 0.0, "expected": 1.0}] * 3, [1, 2, 3]),
    ]
    for agent in agents:
        iterate(agent, 1000)
    assert np.array_equal(agents[0].q_values[:, 0], agents[1].q_values) and agents[1].q_values.any()


class MaximizationBias(VectorEnv):
    """Sutton and Barto's example 6.7: from A (0) to the right is the end, worth 0; to the left is B (1), where each of
    ten actions ends with a reward of N(-0.1, 1). In A even actions lead to the left, odd ones to the right."""

    num_states = 3

    def __init__(self, num_runs: int) -> None:
        super().__init__(num_runs, 1, (1,), 1000, num_actions=10)

    def _seed(self, seeds: list[list[int]]) -> None:
        self.generators = [np.random.default_rng(row[0]) for row in seeds]

    def _restart(self, indices: np.ndarray, observations: np.ndarray) -> None:
        observations[indices] = 0

    def _advance(self, actions: np.ndarray, out: Step) -> None:
        in_b = self._observations[..., 0] == 1
        left = ~in_b & (actions % 2 == 0)
        noise = np.array([[rng.normal(-0.1)] for rng in self.generators])
        out.rewards[:], out.terminations[:] = np.where(in_b, noise, 0.0), ~left
        out.next_observations[..., 0] = np.where(left, 1, 2)


def test_double_q_learning_is_not_drawn_to_noise() -> None:
    """Figure 6.5: at first Q-learning goes left much more often than the 5 % that exploration asks for."""
    left = {}
    for double in (False, True):
        cfg = stack([load_config("q_learning", None, {"alpha": 0.1, "double": double})] * 200)
        agent = algorithms.load("q_learning").Agent(cfg, MaximizationBias(200), list(range(200)))
        iterate(agent, 400)
        episodes = agent.envs.drain_episodes()
        left[double] = np.mean([episode.episode_length == 2 for episode in episodes])
    assert left[False] > 0.4 and left[True] < 0.2


# ---------------------------------------------------------------------------------------------------------- prediction
def test_the_true_values_of_the_random_walk() -> None:
    agent = agent_of("td_n", WALK, [{}, {"gamma": 0.5}], [0, 1])
    assert agent.judged.tolist() == list(range(1, 20))
    assert agent.truth[0] == pytest.approx((np.arange(1, 20) - 10) / 10)
    step = agent.truth[1][1:-1] - 0.25 * (agent.truth[1][:-2] + agent.truth[1][2:])
    assert step == pytest.approx(np.zeros(17)) and agent.truth[1][0] == pytest.approx(-0.5 + 0.25 * agent.truth[1][1])


def test_the_uniform_policys_values_by_simulation() -> None:
    """On Blackjack: the mean return of many hands is the mean of the true values over the first states."""
    agent = agent_of("td_n", CARDS, [{"alpha": 0.01}] * 50, list(range(50)))
    iterate(agent, 2000)
    returns = np.array([episode.episode_return for episode in agent.envs.drain_episodes()])
    worth = float(agent.truth[0] @ model(CARDS).start[agent.judged])
    assert abs(returns.mean() - worth) < 4 * returns.std() / np.sqrt(len(returns))


def test_one_step_is_td_0_and_many_are_monte_carlo() -> None:
    agent = agent_of(
        "td_n", GRID, [{"n": 1.0, "gamma": 0.9, "alpha": 0.1}, {"n": 5000.0, "gamma": 0.9, "alpha": 0.1}], [5, 5]
    )
    iterate(agent, 1000)
    envs, rng = suites.make(GRID, 1, 1), generator(5, "actions")
    state = int(envs.reset([5])[0, 0, 0])
    td, monte_carlo, episode = np.zeros(12), np.zeros(12), []
    for _ in range(1000):
        step = envs.step(np.array([[int(rng.random() * 4)]]))
        reward, after, ended = float(step.rewards[0, 0]), int(step.next_observations[0, 0, 0]), step.terminations[0, 0]
        td[state] += 0.1 * (reward + (0.0 if ended else 0.9 * td[after]) - td[state])
        episode.append((state, reward))
        if ended:
            for t, (visited, _) in enumerate(episode):
                gain = sum(0.9**k * r for k, (_, r) in enumerate(episode[t:]))
                monte_carlo[visited] += 0.1 * (gain - monte_carlo[visited])
            episode = []
        state = int(step.observations[0, 0, 0])
    assert agent.state_values[0] == pytest.approx(td, abs=1e-12)
    assert agent.state_values[1] == pytest.approx(monte_carlo, abs=1e-12)


def test_the_error_of_the_first_ten_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of what `rms_error` is at their ends, and nan before the tenth."""
    monkeypatch.setattr(tabular, "STEPS", 1)
    monkeypatch.setattr(td_n, "STEPS", 1)
    agent = agent_of("td_n", WALK, [{}, {"n": 1.0}, {"n": 64.0, "alpha": 0.1}], [0, 1, 2])
    ends: list[list[float]] = [[], [], []]
    while min(map(len, ends)) < 12:
        metrics = agent.iterate()
        for episode in agent.envs.drain_episodes():
            truth = (np.arange(1, 20) - 10) / 10
            error = np.sqrt(np.mean((agent.state_values[episode.run, 1:20] - truth) ** 2))
            assert metrics["rms_error"][episode.run] == pytest.approx(error)
            ends[episode.run].append(error)
        for run, errors in enumerate(ends):
            found = metrics["rms_error_first_10"][run]
            assert np.isnan(found) if len(errors) < 10 else found == pytest.approx(np.mean(errors[:10]))


def test_an_intermediate_n_is_best() -> None:
    """Figure 7.2 near the minima of three of its curves; the walks are the same for all n."""
    settings = [{"n": 1.0, "alpha": 0.8}, {"n": 4.0, "alpha": 0.4}, {"n": 512.0, "alpha": 0.03}]
    agent = agent_of("td_n", WALK, [run for run in settings for _ in range(50)], list(range(50)) * 3)
    while (metrics := agent.iterate()) and np.isnan(metrics["rms_error_first_10"]).any():
        pass
    errors = metrics["rms_error_first_10"].reshape(3, 50).mean(1)
    assert errors[1] == pytest.approx(0.25, abs=0.01)
    assert errors[0] > 0.3 and errors[2] > 0.4


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("algorithm", "settings", "told"),
    [
        ("q_learning", {"alpha": 0.0}, "alpha"),
        ("q_learning", {"alpha": 1.5}, "alpha"),
        ("q_learning", {"epsilon": -0.1}, "epsilon"),
        ("q_learning", {"epsilon_steps": 0.0}, "epsilon_steps"),
        ("sarsa", {"expected": 2.0}, "expected"),
        ("sarsa", {"gamma": 1.1}, "gamma"),
        ("monte_carlo", {"every_visit": -1.0}, "every_visit"),
        ("monte_carlo", {"num_envs": 0}, "num_envs"),
        ("td_n", {"n": 0.0}, "n is"),
        ("td_n", {"n": 1.5}, "n is"),
        ("td_n", {"n": inf}, "n is"),
    ],
)
def test_impossible_settings_are_refused(algorithm: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config(algorithm, None, settings)


@pytest.mark.parametrize("algorithm", LEARNERS)
def test_a_task_without_numbered_states_is_refused(algorithm: str) -> None:
    with pytest.raises(ValueError, match="numbered"):
        make(algorithm, "CartPole-v1", [{}], [0])


def test_acting_with_streams_explores() -> None:
    agent = agent_of("sarsa", CLIFF, [{"epsilon": 0.0}, {"epsilon": 1.0}], [0, 1])
    assert isinstance(agent, sarsa.Agent)
    agent.q_values[:, :, 2] = 1.0
    observations = np.zeros((2, 400, 1), np.float32)
    assert (agent.act(observations) == 2).all()
    actions = agent.act(observations, Streams([3, 4]))
    assert (actions[0] == 2).all()
    assert np.bincount(actions[1], minlength=4).min() > 60
    walk = agent_of("td_n", CLIFF, [{}, {}], [0, 1])
    assert (walk.act(observations) == 0).all()
    assert np.bincount(walk.act(observations, Streams([3, 4])).ravel(), minlength=4).min() > 140
