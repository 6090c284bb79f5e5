"""The replay memory against a naive twin, and the schedules against their definitions."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch

from algorithms.common.replay import Replay
from algorithms.common.schedules import crossings, linear

SIZES = OBSERVATION, ACTION = 3, 1


def step(rng: np.random.Generator, runs: int, envs: int) -> tuple[np.ndarray, ...]:
    """A step of all environments with numbers that float32 holds exactly."""
    return (
        rng.standard_normal((runs, envs, OBSERVATION), np.float32),
        rng.integers(0, 4, (runs, envs)),
        rng.standard_normal((runs, envs), np.float32).astype(np.float64),
        rng.standard_normal((runs, envs, OBSERVATION), np.float32),
        rng.random((runs, envs)) < 0.2,
    )


class Twin:
    """What the memory means: for each run, a list of its last transitions, the oldest overwritten in place."""

    def __init__(self, runs: int, capacity: int):
        self.runs = [deque(maxlen=capacity) for _ in range(runs)]
        self.capacity, self.count = capacity, 0

    def add(self, observations, actions, rewards, next_observations, terminations) -> None:
        for r, memory in enumerate(self.runs):
            for n in range(actions.shape[1]):
                fields = observations[r, n], next_observations[r, n], actions[r, n], rewards[r, n], terminations[r, n]
                memory.append([np.asarray(field, np.float32) for field in fields])
        self.count += actions.shape[1]

    def slot(self, r: int, index: int) -> list[np.ndarray]:
        """The transition in place `index` of the ring: the oldest of a full one is where the next is written."""
        memory = self.runs[r]
        return memory[(index - self.count) % self.capacity] if len(memory) == self.capacity else memory[index]


@pytest.mark.parametrize(("runs", "capacity", "envs"), [(1, 5, 1), (3, 12, 1), (4, 12, 3), (2, 6, 6)])
def test_against_a_naive_twin(runs: int, capacity: int, envs: int) -> None:
    rng = np.random.default_rng(runs)
    replay, twin = Replay(runs, capacity, envs, *SIZES), Twin(runs, capacity)
    for _ in range(300):
        if not twin.count or rng.random() < 0.5:
            transition = step(rng, runs, envs)
            replay.add(*transition), twin.add(*transition)
        elif rng.random() < 0.1:  # go on in another memory
            state, replay = replay.state(), Replay(runs, capacity, envs, *SIZES)
            replay.load_state(state)
        else:
            uniform = rng.random((runs, 7))
            drawn = replay.sample(uniform)
            for r in range(runs):
                for b in range(7):
                    expected = twin.slot(r, int(uniform[r, b] * len(twin.runs[r])))
                    for field, value in zip(drawn, expected, strict=True):
                        assert np.array_equal(field[r, b].numpy().squeeze(), value)
        assert len(replay) == min(twin.count, capacity) and replay.added == twin.count


def test_draws_are_uniform_over_what_is_in_and_reach_nothing_else() -> None:
    replay = Replay(2, 8, 1, 1, 1)
    for i in range(5):
        replay.add(np.full((2, 1, 1), i), np.zeros((2, 1)), np.zeros((2, 1)), np.zeros((2, 1, 1)), np.zeros((2, 1)))
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
    replay = Replay(3, 40, 2, 4, 1)
    assert replay.rows.numel() * 4 == Replay.size_in_bytes(3, 40, 4, 1)


def test_a_checkpoint_holds_only_what_is_filled() -> None:
    replay = Replay(2, 1000, 1, *SIZES)
    for _ in range(7):
        replay.add(*step(np.random.default_rng(0), 2, 1))
    assert replay.state()["rows"].shape == (2, 7, 2 * OBSERVATION + ACTION + 2)


def test_a_size_that_environments_do_not_fill_evenly_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of num_envs = 3"):
        Replay(1, 10, 3, *SIZES)


def test_drawing_does_not_hand_out_the_memory() -> None:
    replay = Replay(1, 4, 1, *SIZES)
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
