"""The replay memories against naive twins, and the schedules against their definitions."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.common.replay import Replay, Window
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
    assert Replay.width(4, 1) == 16 and Replay.width(6, 1) == 16 and Replay.width(17, 6) == 48
    assert Replay.size_in_bytes(10, 10_000, 4, 1) == 10 * 10_000 * 64
    assert Replay.width(400, 1, np.uint8) == 832 and Replay.width(3, 1, np.uint8) == 64  # 800 + 12, 6 + 2 + 12
    assert Replay.size_in_bytes(10, 10_000, 400, 1, np.uint8) == 10 * 10_000 * 832
    for sizes in ((4, 1), (3, 2), (26, 1), (27, 1)):
        for dtype in (np.float32, np.uint8):
            replay = Replay(3, 40, 2, *sizes, np.ones(3), 1, dtype)
            assert replay.rows.numel() * replay.rows.element_size() == Replay.size_in_bytes(3, 40, *sizes, dtype)


def test_a_checkpoint_holds_only_what_is_filled() -> None:
    for dtype, used in ((np.float32, 2 * OBSERVATION + ACTION + 2), (np.uint8, 8 + 4 * (ACTION + 2))):
        replay = Replay(2, 1000, 1, *SIZES, GAMMAS[:2], 1, dtype)
        for _ in range(7):
            replay.add(*step(np.random.default_rng(0), 2, 1, dtype))
        assert replay.state()["rows"].shape == (2, 7, used)


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
