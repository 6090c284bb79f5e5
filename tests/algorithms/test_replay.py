"""The replay memories against naive twins, and the schedules against their definitions."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from bisect import bisect_right
from collections import deque
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from cases import advance, assert_same, make, outcome

from algorithms.common.observations import zeros
from algorithms.common.replay import PLACE, Layout, PrioritizedReplay, Replay, Window, power
from algorithms.common.schedules import crossings, linear

SIZES = OBSERVATION, ACTION = 3, 1
GAMMAS = np.array([0.9, 1.0, 0.5, 0.0, 0.99])


def step(rng: np.random.Generator, runs: int, envs: int, dtype: type = np.float32) -> tuple[np.ndarray, ...]:
    """A step of all environments with numbers that float32 holds exactly."""

    def observations() -> np.ndarray:
        if dtype == np.uint8:
            return rng.integers(0, 256, (runs, envs, OBSERVATION)).astype(np.float32)
        return rng.standard_normal((runs, envs, OBSERVATION), np.float32)

    return (
        observations(),
        rng.integers(0, 4, (runs, envs)),
        rng.standard_normal((runs, envs), np.float32).astype(np.float64),
        observations(),
        rng.random((runs, envs)) < 0.2,
        rng.random((runs, envs)) < 0.1,
    )


class Twin:
    """What the memory means: for each run, a list of its last transitions, the oldest overwritten in place.

    Every environment's steps are kept for good; once n are there, each one brings the transition that began n - 1
    before it, its return summed step by step.
    """

    def __init__(self, runs: int, capacity: int, gammas: np.ndarray, n_steps: int = 1):
        self.runs = [deque(maxlen=capacity) for _ in range(runs)]
        self.capacity, self.gammas, self.n_steps = capacity, gammas, n_steps
        self.steps: list[tuple[np.ndarray, ...]] = []
        self.count = 0

    def add(self, *step: np.ndarray) -> None:
        self.steps.append(step)
        if len(self.steps) < self.n_steps:
            return
        for r, memory in enumerate(self.runs):
            for n in range(step[1].shape[1]):
                memory.append([np.asarray(field, np.float32) for field in self.transition(r, n)])
        self.count += step[1].shape[1]

    def transition(self, r: int, n: int) -> tuple[Any, ...]:
        observation, action = (self.steps[-self.n_steps][i][r, n] for i in range(2))
        total, discount = 0.0, 1.0
        for fields in self.steps[-self.n_steps :]:
            _, _, reward, successor, terminated, truncated = (field[r, n] for field in fields)
            total += discount * reward
            discount *= self.gammas[r]
            if terminated or truncated:
                break
        return observation, successor, action, total, 0.0 if terminated else discount

    def slot(self, r: int, index: int) -> list[np.ndarray]:
        """The transition in place `index` of the ring: the oldest of a full one is where the next is written."""
        memory = self.runs[r]
        return memory[(index - self.count) % self.capacity] if len(memory) == self.capacity else memory[index]


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 10])
@pytest.mark.parametrize(("runs", "capacity", "envs"), [(1, 5, 1), (3, 12, 1), (4, 12, 3), (2, 6, 6)])
def test_against_a_naive_twin(runs: int, capacity: int, envs: int, n_steps: int, dtype: type) -> None:
    rng, gammas = np.random.default_rng(runs), GAMMAS[:runs]

    def memory() -> Replay:
        return Replay(runs, capacity, envs, *SIZES, gammas, n_steps, dtype)

    replay, twin = memory(), Twin(runs, capacity, gammas, n_steps)
    for _ in range(300):
        if not twin.count or rng.random() < 0.5:
            transition = step(rng, runs, envs, dtype)
            replay.add(*transition), twin.add(*transition)
        elif rng.random() < 0.1:  # go on in another memory
            state, replay = replay.state(), memory()
            replay.add(*step(rng, runs, envs, dtype))  # what was there before does not shine through
            replay.load_state(state)
        else:
            uniform = rng.random((runs, 7))
            drawn = replay.sample(uniform)
            assert all(field.dtype == torch.float32 for field in drawn)
            for r in range(runs):
                for b in range(7):
                    expected = twin.slot(r, int(uniform[r, b] * len(twin.runs[r])))
                    for field, value in zip(drawn, expected, strict=True):
                        assert np.array_equal(field[r, b].numpy().squeeze(), value)
        assert len(replay) == min(twin.count, capacity) and replay.added == twin.count


def test_three_steps_by_hand() -> None:
    """Rewards 1, 10, 100, ...; the third step ends by time limit, the fifth by termination; gamma is 0.5."""
    replay = Replay(1, 16, 1, 1, 1, np.array([0.5]), 3)
    for t in range(8):
        rewards, ends = np.full((1, 1), 10.0**t), (np.full((1, 1), t == 4), np.full((1, 1), t == 2))
        replay.add(np.full((1, 1, 1), t), np.full((1, 1), t), rewards, np.full((1, 1, 1), t + 0.5), *ends)
        assert len(replay) == max(0, t - 1)
    found = replay.sample((np.arange(6)[None] + 0.5) / 6)
    assert found.observations.flatten().tolist() == found.actions.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert found.rewards[0].tolist() == [1 + 5 + 25, 10 + 50, 100, 1e3 + 5e3, 1e4, 1e5 + 5e5 + 25e5]
    assert found.next_observations.flatten().tolist() == [2.5, 2.5, 2.5, 4.5, 4.5, 7.5]
    assert found.discounts[0].tolist() == [0.125, 0.25, 0.5, 0.0, 0.0, 0.125]


def test_a_window_of_one_step_is_the_plain_memory() -> None:
    rng, gammas = np.random.default_rng(0), GAMMAS[:3]
    plain, windowed = (Replay(3, 20, 2, *SIZES, gammas) for _ in range(2))
    windowed.window = Window(1, windowed.gamma, (3, 2), *SIZES, np.float32)
    for _ in range(25):
        transition = step(rng, 3, 2)
        plain.add(*transition), windowed.add(*transition)
        assert plain.added == windowed.added and torch.equal(plain.rows, windowed.rows)


@pytest.mark.parametrize("n_steps", [1, 3, 20])
def test_a_run_is_the_same_in_any_company(n_steps: int) -> None:
    rng = np.random.default_rng(0)
    company = Replay(5, 60, 1, *SIZES, GAMMAS, n_steps)
    alone = [Replay(1, 60, 1, *SIZES, GAMMAS[r : r + 1], n_steps) for r in range(5)]
    for _ in range(100):
        transition = step(rng, 5, 1)
        company.add(*transition)
        for r in range(5):
            alone[r].add(*(field[r : r + 1] for field in transition))
    uniform = rng.random((5, 30))
    drawn = company.sample(uniform)
    for r in range(5):
        for field, own in zip(drawn, alone[r].sample(uniform[r : r + 1]), strict=True):
            assert torch.equal(field[r], own[0])


def scalars(replay: Replay, values: int) -> None:
    """Adds transitions of one number each: 0, 1, 2, ..."""
    zero = np.zeros((replay.num_runs, 1))
    for i in range(values):
        replay.add(zero[..., None] + i, zero, zero, zero[..., None], zero > 0, zero > 0)


def test_draws_are_uniform_over_what_is_in_and_reach_nothing_else() -> None:
    replay = Replay(2, 8, 1, 1, 1, np.ones(2))
    scalars(replay, 5)
    uniform = np.random.default_rng(0).random((2, 50_000))
    counts = [np.bincount(run.long().numpy(), minlength=8) for run in replay.sample(uniform).observations[..., 0]]
    for count in counts:
        assert count[5:].sum() == 0
        assert np.abs(count[:5] - 10_000).max() < 5 * np.sqrt(50_000 * 0.2 * 0.8)
    assert not np.array_equal(*counts)


def test_the_largest_number_below_one_stays_inside() -> None:
    """Float64 rounds u * size below size, whatever the size; float32 would not."""
    largest = np.nextafter(1.0, 0.0)
    for size in [*range(1, 2000), 10**6 - 1, 10**6, 2**24 + 1, 2**31]:
        assert int(largest * size) == size - 1


def test_a_row_takes_whole_cache_lines_and_the_size_is_known_beforehand() -> None:
    for sizes, dtype, bytes_of_one in (
        ((4, 1), np.float32, 64),  # CartPole
        ((6, 1), np.float32, 64),
        ((11, 3), np.float32, 128),  # Hopper
        ((17, 6), np.float32, 192),  # HalfCheetah
        ((105, 8), np.float32, 64 + 448),  # Ant
        ((400, 1), np.uint8, 64 + 448),  # MinAtar; both in one row would be 800 + 12
        ((84 * 84 * 4, 1), np.uint8, 64 + 28_224),  # Atari
        ((3, 1), np.uint8, 64),
        ((26, 1), np.float32, 256),
    ):
        once = bytes_of_one > 256
        assert Layout.of(*sizes, np.dtype(dtype)).once is once
        for envs, n_steps in ((1, 1), (2, 3)):
            replay = Replay(3, 40, envs, *sizes, np.ones(3), n_steps, dtype)
            size, more = Replay.size_in_bytes(3, 40, envs, *sizes, n_steps, dtype)
            extra = envs * n_steps * (bytes_of_one - 64) if once else 0  # where the last step led, and n - 1 before
            assert size == 3 * (40 * bytes_of_one + extra)
            found = replay.rows.numel() * replay.rows.element_size()
            if replay.observations is not None:
                seen, finals = replay.observations.seen, replay.observations.finals
                found += seen.numel() * seen.element_size()
                assert finals.numel() * finals.element_size() <= more < 3 * 2 * (40 + 2 * envs) * (bytes_of_one - 64)
            assert found == size and bool(more) is once


def test_zeros_take_pages_as_they_fill() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident() if Path("/proc/self/statm").exists() else 0
    found = zeros((2, 1000, 100_000), np.dtype(np.float32), "cpu")  # 800 MB
    assert found.shape == (2, 1000, 100_000) and found.dtype == torch.float32 and found.is_contiguous()
    assert found.data_ptr() % 64 == 0 and not found[:, ::100, ::10_000].any()
    if before:
        assert resident() - before < 200e6


@pytest.mark.parametrize("kind", [Replay, PrioritizedReplay])
def test_the_size_is_told_before_it_is_taken(
    kind: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HalfCheetah's million transitions of 192 bytes; priorities add 2^21 sums of 8 bytes to each run."""

    def full(*shape: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("algorithms.common.observations.mmap.mmap", full)
    caplog.set_level(logging.INFO, "algorithms")
    with pytest.raises(MemoryError):
        kind(2, 1_000_000, 1, 17, 6, GAMMAS[:2], **({} if kind is Replay else {"alpha": np.ones(2)}))
    bytes_of_one, all_of_them = (192, "384.0") if kind is Replay else (209, "417.6")
    expected = f"2 runs x 1,000,000 transitions x {bytes_of_one} bytes = {all_of_them} MB"
    assert [expected in message for message in caplog.messages] == [True]


def test_the_size_tells_of_the_last_observations_of_episodes(caplog: pytest.LogCaptureFixture) -> None:
    """1,000 rows of 64 bytes and 1,001 observations of 448 in each run; 2,048 of those for the ends of both."""
    caplog.set_level(logging.INFO, "algorithms")
    Replay(2, 1000, 1, 400, 1, GAMMAS[:2], 1, np.uint8)
    expected = "2 runs x 1,000 transitions x 512 bytes = 1.0 MB when full, and at most 0.9 MB for the last observations"
    assert [expected in message for message in caplog.messages] == [True]


def test_a_checkpoint_holds_only_what_is_filled() -> None:
    for dtype, used in ((np.float32, 2 * OBSERVATION + ACTION + 2), (np.uint8, 8 + 4 * (ACTION + 2))):
        replay = Replay(2, 1000, 1, *SIZES, GAMMAS[:2], 1, dtype)
        for _ in range(7):
            replay.add(*step(np.random.default_rng(0), 2, 1, dtype))
        assert replay.state()["rows"].rows.shape == (2, 7, used)


# --------------------------------------------------------------------------------------- each observation once
class Walk:
    """Steps that follow each other as those of environments do.

    From the 60th on, run 1 is parked, and what the last one sees is not a number.
    Few episodes end at first, then many, then few again; of the ends, some are time limits, some both.
    """

    def __init__(self, runs: int, envs: int, dtype: type):
        self.rng, self.shape, self.dtype, self.steps = np.random.default_rng(runs), (runs, envs, OBSERVATION), dtype, 0
        self.observations = self.drawn()

    def drawn(self) -> np.ndarray:
        if self.dtype == np.uint8:
            return self.rng.integers(0, 256, self.shape).astype(np.float32)
        return self.rng.standard_normal(self.shape, np.float32) * self.rng.integers(-1, 2, self.shape)  # with -0.0

    def __call__(self) -> tuple[np.ndarray, ...]:
        self.steps += 1
        share = 0.4 if 60 < self.steps < 90 else 0.04
        terminations, truncations = self.rng.random((2, *self.shape[:2])) < share
        successors, rewards = self.drawn(), self.rng.standard_normal(self.shape[:2])
        if self.steps > 60:
            if self.dtype == np.float32:
                successors[-1] = np.nan
            if len(successors) > 1:
                successors[1], rewards[1] = self.observations[1], 0.0
                terminations[1] = truncations[1] = False
        begun, ends = self.observations, terminations | truncations
        self.observations = np.where(ends[..., None], self.drawn(), successors)
        return begun, self.rng.integers(0, 4, self.shape[:2]), rewards, successors, terminations, truncations


LAYOUTS = Layout._row, lambda o, a, dtype: Layout._row(1, a, PLACE, once=True)  # both in a row; each kept once


def either_way(monkeypatch: pytest.MonkeyPatch, kind: Any, *sizes: Any, **options: Any) -> list[Any]:
    """The same memory twice."""
    memories = []
    for layout in LAYOUTS:
        monkeypatch.setattr(Layout, "of", layout)
        memories.append(kind(*sizes, **options))
    assert [memory.layout.once for memory in memories] == [False, True]
    return memories


def same_bits(one: Any, other: Any) -> bool:
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("runs", "capacity", "envs"), [(1, 5, 1), (3, 24, 1), (3, 24, 3), (2, 6, 6)])
def test_what_is_drawn_does_not_depend_on_the_layout(
    runs: int, capacity: int, envs: int, n_steps: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def memories() -> list[Replay]:
        return either_way(monkeypatch, Replay, runs, capacity, envs, *SIZES, GAMMAS[:runs], n_steps, dtype)

    (plain, once), walk, rng = memories(), Walk(runs, envs, dtype), np.random.default_rng(0)
    once.observations.kept = once.observations.oldest = 2**31 - 9  # numbers of final observations are counted anew
    most = 0
    for t in range(150):
        transition = walk()
        plain.add(*transition), once.add(*transition)
        if rng.random() < 0.05:  # go on in another memory
            state, (_, once) = once.state(), memories()
            for _ in range(3):
                once.add(*Walk(runs, envs, dtype)())
                once.observations.ended[:] = True
            once.load_state(state)
        if t >= n_steps:
            uniform = rng.random((runs, 30))
            assert same_bits(plain.sample(uniform), once.sample(uniform)), t
        kept, ends = once.observations, runs * (capacity + envs * (n_steps - 1))
        most = max(most, kept.kept - kept.oldest)
        assert most <= ends and runs * envs <= len(kept.finals) <= max(2 * most, 2 * runs * envs)
    assert plain.added == once.added and kept.kept > 2**31
    assert most > runs * envs or capacity == envs  # it has grown


@pytest.mark.parametrize("n_steps", [1, 3])
def test_what_is_drawn_by_priority_does_not_depend_on_the_layout(n_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = 3, 24, 2, *SIZES, GAMMAS[:3], n_steps
    memories, walk = either_way(monkeypatch, PrioritizedReplay, *sizes, alpha=ALPHAS[:3]), Walk(3, 2, np.float32)
    rng = np.random.default_rng(0)
    for t in range(120):
        transition, uniform, td_errors = walk(), rng.random((3, 8)), torch.from_numpy(rng.standard_normal((3, 8)))
        for memory in memories:
            memory.add(*transition)
        if t >= n_steps:
            (plain, *one), (once, *other) = (memory.sample(uniform, BETAS[:3]) for memory in memories)
            assert same_bits((*plain, *one), (*once, *other))
            for memory in memories:
                memory.update(one[0], td_errors)


def test_an_agent_learns_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """On images, with three steps at a time and one of two runs parked; after a pause as well."""
    sizes = {"convolutions": "minatar", "hidden_sizes": (8,), "batch_size": 4, "buffer_size": 60, "train_period": 10}
    runs = [sizes | {"n_steps": 3, "learning_starts": 20, "learning_rate": rate} for rate in (0.01, 0.1)]
    results = []
    for layout in LAYOUTS:
        monkeypatch.setattr(Layout, "of", layout)
        agent = make("nstep_dqn", "MinAtar-Breakout-v1", runs, [4, 5])
        advance(agent, 50)
        agent.envs.park(1)
        state, envs = copy.deepcopy((agent.state(), agent.envs.state()))
        results.append(outcome(agent, advance(agent, 50)))
        assert agent.replay.layout.once is (len(results) == 2)
    agent.load_state(state)
    agent.envs.load_state(envs)
    results.append(outcome(agent, advance(agent, 50)))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            assert_same(one, other)


def test_a_step_that_does_not_follow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, once = either_way(monkeypatch, Replay, 2, 10, 1, *SIZES, GAMMAS[:2])
    first, second = (step(np.random.default_rng(seed), 2, 1) for seed in (0, 1))
    once.add(*first[:4], np.array([[True], [False]]), np.zeros((2, 1), bool))
    with pytest.raises(ValueError, match="begins elsewhere"):
        once.add(*second)
    second[0][1] = first[3][1]
    once.add(*second)


def test_a_checkpoint_of_observations_kept_once_holds_only_what_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    _, once = either_way(monkeypatch, Replay, 2, 1000, 1, *SIZES, GAMMAS[:2])
    walk = Walk(2, 1, np.float32)
    for _ in range(40):
        once.add(*walk())
    state = once.state()
    assert state["rows"].rows.shape == (2, 40, 2 + ACTION + 2)
    assert state["observations"]["seen"].rows.shape == (2, 40, OBSERVATION)
    ends = state["observations"]["finals"]
    assert ends.rows.shape == (1, ends.added, OBSERVATION) and 0 < ends.added < 20


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_envs = 3"):
        Replay(1, 10, 3, *SIZES, GAMMAS[:1])
    with pytest.raises(ValueError, match="n_steps is 0"):
        Replay(1, 10, 1, *SIZES, GAMMAS[:1], 0)


def test_drawing_before_the_first_transition_is_refused() -> None:
    replay = Replay(1, 10, 1, *SIZES, GAMMAS[:1], 3)
    for _ in range(2):
        replay.add(*step(np.random.default_rng(0), 1, 1))
    with pytest.raises(RuntimeError, match="after the first n_steps steps"):
        replay.sample(np.zeros((1, 1)))


def test_drawing_does_not_hand_out_the_memory() -> None:
    replay = Replay(1, 4, 1, *SIZES, GAMMAS[:1])
    transition = step(np.random.default_rng(0), 1, 1)
    replay.add(*transition)
    replay.sample(np.zeros((1, 2))).observations.zero_()
    assert torch.equal(replay.sample(np.zeros((1, 1))).observations[0, 0], torch.from_numpy(transition[0][0, 0]))


# ------------------------------------------------------------------------------------------------- by priority
class PrioritizedTwin:
    """One run of algorithm 1, literally: a list of p^alpha, and sums over all of it in exact numbers."""

    def __init__(self, capacity: int, alpha: float):
        self.alpha, self.capacity = alpha, capacity
        self.priorities: list[float] = []
        self.largest, self.count = 1.0, 0

    def add(self) -> None:
        if len(self.priorities) < self.capacity:
            self.priorities.append(self.largest)
        else:
            self.priorities[self.count % self.capacity] = self.largest
        self.count += 1

    def draw(self, uniform: np.ndarray) -> list[int]:
        """For segment k of B, the first transition at which the running sum is above (k + u) / B of the whole."""
        sums = list(accumulate(map(Fraction, self.priorities)))
        size = len(uniform)
        return [bisect_right(sums, (k + Fraction(u)) / size * sums[-1]) for k, u in enumerate(uniform.tolist())]

    def weights(self, indices: list[int], beta: float) -> list[float]:
        total, size = float(sum(map(Fraction, self.priorities))), len(self.priorities)
        weights = [(size * self.priorities[i] / total) ** -beta for i in indices]
        return [weight / max(weights) for weight in weights]

    def update(self, indices: list[int], td_errors: list[float]) -> None:
        for i, td_error in zip(indices, td_errors, strict=True):
            self.priorities[i] = (abs(td_error) + 1e-6) ** self.alpha
            self.largest = max(self.largest, self.priorities[i])


ALPHAS, BETAS = np.array([0.6, 0.0, 1.0, 0.5]), np.array([0.4, 1.0, 0.0, 0.7])


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize(("capacity", "envs", "size"), [(1, 1, 3), (5, 1, 1), (13, 1, 32), (24, 3, 8), (64, 4, 16)])
def test_priorities_against_a_naive_twin(capacity: int, envs: int, size: int, n_steps: int) -> None:
    rng, runs = np.random.default_rng(capacity), 4

    def memory() -> PrioritizedReplay:
        return PrioritizedReplay(runs, capacity, envs, *SIZES, GAMMAS[:runs], n_steps, alpha=ALPHAS)

    replay, twins = memory(), [PrioritizedTwin(capacity, alpha) for alpha in ALPHAS]
    rows = Twin(runs, capacity, GAMMAS[:runs], n_steps)
    for _ in range(300):
        if not rows.count or rng.random() < 0.3:
            transition = step(rng, runs, envs)
            replay.add(*transition), rows.add(*transition)
            if len(rows.steps) >= n_steps:
                [twin.add() for twin in twins for _ in range(envs)]
        elif rng.random() < 0.1:  # go on in another memory
            state, replay = replay.state(), memory()
            for _ in range(2 * capacity):
                replay.add(*step(rng, runs, envs))
            replay.update(np.zeros((runs, 1), np.int64), torch.full((runs, 1), 1e6))
            replay.load_state(state)
        else:
            uniform = rng.random((runs, size))
            drawn, indices, weights = replay.sample(uniform, BETAS)
            assert weights.dtype == torch.float32 and weights.shape == indices.shape == (runs, size)
            td_errors = rng.standard_normal((runs, size), np.float32) * 3
            for r, twin in enumerate(twins):
                expected = twin.draw(uniform[r])
                assert indices[r].tolist() == expected
                assert weights[r].numpy() == pytest.approx(twin.weights(expected, BETAS[r]), rel=1e-6)
                assert drawn.rewards[r].tolist() == [float(rows.slot(r, i)[3]) for i in expected]
                twin.update(expected, td_errors[r].tolist())
            if rng.random() < 0.8:
                replay.update(indices, torch.from_numpy(td_errors))
            else:  # nothing said is nothing changed
                for twin, leaves, largest in zip(twins, replay.levels[-1], replay.largest, strict=True):
                    twin.priorities, twin.largest = leaves[: len(replay)].tolist(), float(largest[0])
        for r, twin in enumerate(twins):
            assert replay.levels[-1][r, : len(replay)] == pytest.approx(twin.priorities, rel=1e-12)
            assert not replay.levels[-1][r, len(replay) :].any()
            assert replay.largest[r, 0] == pytest.approx(twin.largest, rel=1e-12)
            twin.priorities = replay.levels[-1][r, : len(replay)].tolist()  # the same last bit
        for level, below in zip(replay.levels[:-1], replay.levels[1:], strict=True):
            assert np.array_equal(level, below[:, ::2] + below[:, 1::2])


def filled(priorities: list[float], runs: int, alpha: float = 1.0, capacity: int | None = None) -> PrioritizedReplay:
    """A memory whose transitions are 0, 1, 2, ... with these p."""
    size = len(priorities)
    replay = PrioritizedReplay(runs, capacity or size, 1, 1, 1, np.ones(runs), alpha=np.full(runs, alpha))
    scalars(replay, size)
    td_errors = torch.tensor([priorities], dtype=torch.float64).repeat(runs, 1) - replay.EPSILON
    replay.update(np.arange(size)[None].repeat(runs, 0), td_errors)
    return replay


def test_priorities_by_hand() -> None:
    replay = filled([1.0, 3.0, 4.0], 1)
    sought = np.array([[0.5, 1.5, 3.9, 4.1]]) / 8 * 4 - np.arange(4)  # of the whole, in quarters of it
    assert not ((sought >= 0) & (sought < 1)).all()  # not every number lies in its segment: handed in all the same
    drawn, indices, weights = replay.sample(sought, np.ones(1))
    assert indices.tolist() == [[0, 1, 1, 2]] and drawn.observations.flatten().tolist() == [0, 1, 1, 2]
    # (3 p / 8)^-1 is 8/3, 8/9, 8/9, 2/3; over the largest of these
    assert weights[0].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 4], rel=1e-6)
    assert replay.sample(sought, np.full(1, 0.5))[2][0].tolist() == pytest.approx(
        [1, 3**-0.5, 3**-0.5, 1 / 2], rel=1e-6
    )


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_frequencies_are_the_probabilities(alpha: float) -> None:
    """One draw of each of many runs with the same priorities: independent, so that chi-square applies."""
    runs, p = 20_000, np.array([0.1, 5.0, 1.0, 1.0, 0.5, 2.0, 0.3])
    replay = filled(p.tolist(), runs, alpha, capacity=9)
    probabilities = p**alpha / (p**alpha).sum()
    _, indices, _ = replay.sample(np.random.default_rng(1).random((runs, 1)), np.ones(runs))
    counts = np.bincount(indices[:, 0], minlength=9)
    assert counts[7:].sum() == 0
    assert scipy.stats.chisquare(counts[:7], runs * probabilities).pvalue > 0.01
    assert scipy.stats.chisquare(counts[:7], np.full(7, runs / 7)).pvalue < 1e-9  # which the test can tell


def test_segments_leave_less_than_two_draws_to_chance() -> None:
    p = np.array([0.1, 5.0, 1.0, 1.0, 0.5, 2.0, 0.3])
    replay = filled(p.tolist(), 50)
    _, indices, _ = replay.sample(np.random.default_rng(0).random((50, 64)), np.ones(50))
    for run in indices:
        assert (np.diff(run) >= 0).all()
        assert np.abs(np.bincount(run, minlength=7) - 64 * p / p.sum()).max() < 2


def test_alpha_zero_is_uniform_in_segments() -> None:
    rng = np.random.default_rng(0)
    for capacity, added in ((100, 37), (100, 250), (64, 64)):
        replay = PrioritizedReplay(2, capacity, 1, 1, 1, np.ones(2), alpha=np.zeros(2))
        scalars(replay, added)
        for beta in (0.0, 1.0):
            uniform = rng.random((2, 16))
            _, indices, weights = replay.sample(uniform, np.full(2, beta))
            assert np.array_equal(indices, ((np.arange(16) + uniform) / 16 * len(replay)).astype(int))
            assert (weights == 1).all()
            replay.update(indices, torch.from_numpy(rng.standard_normal((2, 16))))


def test_beta_one_makes_up_for_the_priorities() -> None:
    """The weighted mean over draws, its weights' scale undone, is the mean over the memory."""
    p, runs = [0.5, 5.0, 1.0, 1.5], 8_000
    replay = filled(p, runs)
    drawn, indices, _ = replay.sample(np.random.default_rng(0).random((runs, 1)), np.ones(runs))
    weights = (4 * np.array(p) / sum(p)) ** -1.0
    assert (weights[indices] * drawn.observations[..., 0].numpy()).mean() == pytest.approx(1.5, abs=0.05)
    batch = replay.sample(np.random.default_rng(0).random((runs, 8)), np.ones(runs))
    expected = weights[batch[1]] / weights[batch[1]].max(1, keepdims=True)
    assert batch[2].numpy() == pytest.approx(expected, rel=1e-6)
    assert (replay.sample(np.zeros((runs, 8)), np.zeros(runs))[2] == 1).all()


def test_of_several_td_errors_for_one_transition_the_last_counts() -> None:
    replay = filled([1.0] * 6, 2)
    indices = np.array([[2, 4, 2, 2, 4, 0], [1, 1, 1, 1, 1, 1]])
    td_errors = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0], [1.0, 2.0, 3.0, 30.0, 5.0, 6.0]], dtype=torch.float64)
    replay.update(indices, td_errors - replay.EPSILON)
    assert replay.levels[-1][0, :6] == pytest.approx([4, 1, 6, 1, 5, 1])
    assert replay.levels[-1][1, :6] == pytest.approx([1, 6, 1, 1, 1, 1])
    assert replay.largest[:, 0] == pytest.approx([9, 30])


def test_numbers_at_the_edges_of_segments_stay_inside() -> None:
    for size in (1, 3, 7, 8, 100, 1000):
        replay = filled(np.random.default_rng(size).random(size).tolist(), 1, capacity=size + size % 3)
        for uniform in (np.zeros((1, 128)), np.full((1, 128), np.nextafter(1.0, 0.0))):
            indices = replay.sample(uniform, np.ones(1))[1]
            assert (indices >= 0).all() and (indices < size).all()
        assert indices[0, -1] == size - 1


def prioritized_trace(replay: PrioritizedReplay, runs: list[int], seed: int, spoil: int | None = None) -> list[Any]:
    """What happens to `runs` of five in a script of additions, draws and updates."""
    rng, seen = np.random.default_rng(seed), []
    for t in range(120):
        transition, uniform = step(rng, 5, 1), rng.random((5, 20))
        td_errors = torch.from_numpy(rng.standard_normal((5, 20), np.float32))
        if spoil is not None and t > 40:
            td_errors[spoil] = torch.tensor([np.nan, np.inf])[t % 2]
        replay.add(*(field[runs] for field in transition))
        if t >= 5:
            drawn, indices, weights = replay.sample(uniform[runs], BETAS_OF_FIVE[runs])
            replay.update(indices, td_errors[runs])
            seen.append([*(field.clone() for field in drawn), torch.from_numpy(indices), weights])
    return seen


ALPHAS_OF_FIVE, BETAS_OF_FIVE = np.array([0.6, 0.0, 1.0, 0.5, 0.7]), np.array([0.4, 1.0, 0.0, 0.5, 0.7])


def of_five(runs: list[int], n_steps: int = 2) -> PrioritizedReplay:
    return PrioritizedReplay(len(runs), 50, 1, *SIZES, GAMMAS[runs], n_steps, alpha=ALPHAS_OF_FIVE[runs])


@pytest.mark.parametrize("runs", [[0], [3], [4, 1], [2, 0, 4]])
def test_a_run_is_drawn_the_same_in_any_company(runs: list[int]) -> None:
    company = prioritized_trace(of_five([0, 1, 2, 3, 4]), [0, 1, 2, 3, 4], 0)
    for ours, theirs in zip(prioritized_trace(of_five(runs), runs, 0), company, strict=True):
        assert all(torch.equal(one, other[runs]) for one, other in zip(ours, theirs, strict=True))


def test_a_run_that_diverges_stays_among_its_own_transitions_and_harms_no_other() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spoilt = prioritized_trace(of_five([0, 1, 2, 3, 4]), [0, 1, 2, 3, 4], 0, spoil=2)
    sound, others = prioritized_trace(of_five([0, 1, 2, 3, 4]), [0, 1, 2, 3, 4], 0), [0, 1, 3, 4]
    for ours, theirs in zip(spoilt, sound, strict=True):
        assert all(torch.equal(one[others], other[others]) for one, other in zip(ours, theirs, strict=True))
        assert ((ours[5] >= 0) & (ours[5] < 50)).all()


def test_priorities_go_on_exactly() -> None:
    replay, twin, runs = of_five([0, 1, 2, 3, 4]), of_five([0, 1, 2, 3, 4]), [0, 1, 2, 3, 4]
    prioritized_trace(replay, runs, 0)
    state = replay.state()
    kept = state["priorities"].copy(), state["largest"].copy()
    twin.load_state(state)
    for ours, theirs in zip(prioritized_trace(replay, runs, 1), prioritized_trace(twin, runs, 1), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert np.array_equal(state["priorities"], kept[0]) and np.array_equal(state["largest"], kept[1])


def test_the_trees_size_is_known_beforehand() -> None:
    for capacity in (1, 2, 3, 1000, 1024):
        replay = PrioritizedReplay(3, capacity, 1, 4, 1, np.ones(3), alpha=np.ones(3))
        found = replay.rows.numel() * 4 + sum(level.nbytes for level in replay.levels)
        assert found == PrioritizedReplay.size_in_bytes(3, capacity, 1, 4, 1)[0]
        assert replay.levels[-1].shape[1] >= capacity


def test_power_is_the_same_for_one_exponent_and_many() -> None:
    base, exponents = np.random.default_rng(0).random((6, 5)) + 0.01, np.array([0.5, 2.0, 1.0, 0.0, -1.0, 0.6])[:, None]
    assert power(base, exponents) == pytest.approx(base**exponents, rel=1e-14)
    for r in range(6):
        for size in (1, 2, 5):
            alone = power(base[r : r + 1, :size].copy(), exponents[r : r + 1])
            assert np.array_equal(alone[0], power(base[:, :size].copy(), exponents)[r])


# --------------------------------------------------------------------------------------------------- schedules
def test_linear_schedule() -> None:
    steps = np.array([0, 25, 50, 99, 100, 1000])
    start, end, duration = np.array([1.0, 0.5]), np.array([0.1, 0.5]), np.array([100.0, 1.0])
    found = linear(start, end, duration, steps)
    assert found.shape == (6, 2)
    assert found[:, 0] == pytest.approx([1.0, 0.775, 0.55, 0.109, 0.1, 0.1])
    assert found[:, 1] == pytest.approx(0.5)


def test_crossings_count_every_multiple_once() -> None:
    for envs in (1, 3, 8, 64):
        for period in (1, 2, 5, 7, 10, 64, 100):
            total, seen = 0, []
            for k in range(1, 200):
                due = int(crossings(k * envs, envs, period))
                assert due == sum(x % period == 0 for x in range((k - 1) * envs + 1, k * envs + 1))
                total += due
                seen.append(due)
            assert total == 199 * envs // period
    assert crossings(np.array([4, 8, 12]), 4, 6).tolist() == [0, 1, 1]
    assert crossings(12, 4, np.array([6.0, 5.0, 9.5])).tolist() == [1, 1, 1]
