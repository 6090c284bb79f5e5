"""The properties of the run axis, for every algorithm there is; "the same" means the same bits.

Alone = in company; the order of the runs is irrelevant; all streams differ; resume = no pause.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resume
import torch
from cases import (
    EVOLUTION,
    LINEAR,
    PLANNERS,
    advance,
    assert_same,
    inf,
    make,
    mixed,
    outcome,
    small,
    some_observations,
    switches,
    tasks,
    train,
)

import algorithms
from algorithms.common.streams import Streams, generator
from suites.vector import PURPOSE

LOOPS = ("ppo", "dqn", "q_learning")
# Switches in their other positions: always for the algorithms whose loops the others share, and for A2C, which alone
# has returns to scale; else with `make test-all`.
CASES = [
    pytest.param(
        algorithm,
        task,
        structure,
        id=f"{algorithm}-{task}-{name}",
        marks=[pytest.mark.slow] if structure and algorithm not in (*LOOPS, "a2c") else [],
    )
    for algorithm in algorithms.names()
    for name, structure in (("plain", {}), ("switched", switches(algorithm)))
    for task in tasks(algorithm)
    if structure or name == "plain"
]
SEEDS = [1000 + 7 * i for i in range(33)]
# Members of the group of 33 that are trained again in smaller groups: sizes 1, 2, 3, 5 and 10; first, middle and last.
GROUPS = [[0], [1], [16], [32], [31, 32], [0, 1, 2], [30, 2, 9], [7, 8, 9, 10, 11], list(range(20, 10, -1))]
# Of nine: enough for algorithms that share the loop of one of `LOOPS`. The last is all of them in another order.
FEW = [[0], [8], [4, 5], [3, 6, 0, 5, 1, 8, 4, 2, 7]]
WILD = {"initial_std": 1e39, "direction_std": 1e39}  # of weights: more than float32 holds


@pytest.mark.parametrize(("algorithm", "task", "structure"), CASES)
def test_alone_equals_in_company(algorithm: str, task: str, structure: dict[str, Any]) -> None:
    """A run's weights, metrics and episodes do not depend on how many train beside it, where it stands, or how the
    others are set."""
    count, groups = (33, GROUPS) if algorithm in LOOPS else (9, FEW)
    runs = mixed(algorithm, count, **structure)
    company = train(algorithm, task, runs, SEEDS[:count])
    for group in groups:
        part = train(algorithm, task, [runs[i] for i in group], [SEEDS[i] for i in group])
        for i, result in zip(group, part, strict=True):
            assert_same(company[i], result, f"run {i} in the group {group}")


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_equal_settings_take_the_same_bits(algorithm: str) -> None:
    """A run among others with its own settings (numbers shared by all) equals it among others with different ones."""
    task = tasks(algorithm)[-1]
    alike = train(algorithm, task, [mixed(algorithm, 2)[1]] * 4, SEEDS[:4])
    for i in range(4) if algorithm in LOOPS else (2,):
        runs = mixed(algorithm, 4)
        runs[i] = mixed(algorithm, 2)[1]
        assert_same(alike[i], train(algorithm, task, runs, SEEDS[:4])[i], f"run {i}")


@pytest.mark.parametrize(("algorithm", "task", "structure"), [case for case in CASES if case.values[0] in LOOPS])
def test_order_of_runs_is_irrelevant(algorithm: str, task: str, structure: dict[str, Any]) -> None:
    """For the other algorithms, the last of `FEW` says so."""
    runs = mixed(algorithm, 7, **structure)
    order = [3, 6, 0, 5, 1, 4, 2]
    one = train(algorithm, task, runs, SEEDS[:7])
    other = train(algorithm, task, [runs[i] for i in order], [SEEDS[i] for i in order])
    for place, i in enumerate(order):
        assert_same(one[i], other[place], f"run {i}")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("algorithm", algorithms.names())
def test_a_diverged_run_harms_no_other(algorithm: str) -> None:
    for task in tasks(algorithm):
        runs = mixed(algorithm, 5)
        healthy = train(algorithm, task, runs, SEEDS[:5])
        runs[2] = runs[2] | {"learning_rate": 1e38, "anneal_steps": inf, "target_kl": inf, **WILD}
        runs[2] = {name: value for name, value in runs[2].items() if name in runs[0]}
        agent = make(algorithm, task, runs, SEEDS[:5])
        if algorithm == "trpo_vine":  # the line search lets nothing pass
            for view in agent.parameters.views.values():
                view.detach()[2] = np.nan
        elif not {"learning_rate", *WILD} & set(runs[2]):  # what tables hold are bounded averages
            state = agent.state()
            for name in agent.parameters_of(2):
                state[name][2] = np.nan
            agent.load_state(state)
        results = outcome(agent, advance(agent, 288))
        assert agent.diverged().tolist() == [False, False, True, False, False]
        for i in (0, 1, 3, 4):
            assert_same(healthy[i], results[i], f"{task}, run {i}")


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_a_parked_run_harms_no_other(algorithm: str) -> None:
    task = tasks(algorithm)[0]
    runs = mixed(algorithm, 4)
    results = []
    for parked in (False, True):
        agent = make(algorithm, task, runs, SEEDS[:4])
        advance(agent, 1)
        if parked:
            agent.envs.park(1)
        results.append(outcome(agent, advance(agent, 192)))
    for i in (0, 2, 3):
        assert_same(results[0][i], results[1][i], f"run {i}")


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_acting_and_saving_change_nothing(algorithm: str) -> None:
    """Evaluation, a snapshot and a look at the weights between iterations leave training as it is."""
    for task in tasks(algorithm)[:2]:
        runs = mixed(algorithm, 3, **switches(algorithm))
        twin, agent = (make(algorithm, task, runs, SEEDS[:3]) for _ in range(2))
        undisturbed = advance(twin, 288)
        observations = some_observations(agent, 11)
        metrics = []
        for _ in undisturbed:
            metrics.append(agent.iterate())
            before = copy.deepcopy(agent.state())
            greedy = agent.act(observations)
            assert np.array_equal(greedy, agent.act(observations))
            agent.act(observations, Streams([1, 2, 3]))
            agent.parameters_of(1), agent.diverged()
            if hasattr(agent, "values"):
                assert np.isfinite(agent.values(observations)).all()
            assert_same_state(agent.state(), before)
        for one, other in zip(outcome(twin, undisturbed), outcome(agent, metrics), strict=True):
            assert_same(one, other, task)


# ------------------------------------------------------------------------------------------------------------ streams
@functools.cache
def first_numbers_of(purpose: str | None) -> list[tuple[int, ...]]:
    """Of many seeds' generators of a purpose, or of those of eight environments each."""
    seeds = [*range(200), *SEEDS]
    if purpose is None:
        made = [np.random.default_rng(np.random.SeedSequence((seed, PURPOSE, n))) for seed in seeds for n in range(8)]
    else:
        made = [generator(seed, purpose) for seed in seeds]
    return [tuple(rng.bit_generator.random_raw(4).tolist()) for rng in made]


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_all_streams_differ(algorithm: str) -> None:
    """No two runs share draws, nor two purposes of a run, its environments included; nothing global is drawn from."""
    for task in tasks(algorithm):
        before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()
        agent = make(algorithm, task, [small(algorithm)] * 4, SEEDS[:4])
        advance(agent, 192)
        assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(), random.getstate()) == before

        purposes = list(agent.streams.state())
        if algorithm in PLANNERS:
            assert not purposes
            continue
        tabular = "tabular" in algorithms.load(algorithm).SUPPORTS
        alone = algorithm in EVOLUTION | LINEAR or tabular  # draw one kind of thing
        assert ("directions" if algorithm in EVOLUTION else "actions") in purposes and len(purposes) >= 2 - alone
        generators = [rng for purpose in purposes for rng in agent.streams[purpose]]
        assert len({id(rng) for rng in generators}) == len(purposes) * 4
        # PCG64's increment names a stream: streams with different ones never meet, however long they are.
        states = [rng.bit_generator.state["state"] for rng in generators]
        assert len({state["inc"] for state in states}) == len(generators)

        numbers = [number for purpose in (*purposes, None) for number in first_numbers_of(purpose)]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_no_two_runs_share_draws(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As drawn while training: no array comes up twice, for another run, purpose or moment."""
    drawn: list[tuple[str, int, bytes]] = []
    draw = Streams.draw

    def recorded(self: Streams, purpose: str, one: Any, axis: int = 0) -> np.ndarray:
        values = draw(self, purpose, one, axis)
        if purpose == "minibatches" and values.shape[1] < 8:  # few sequences have few orders: some come up again
            return values
        drawn.extend((purpose, run, np.take(values, run, axis).tobytes()) for run in range(values.shape[axis]))
        return values

    monkeypatch.setattr(Streams, "draw", recorded)
    agent = make(algorithm, tasks(algorithm)[-1], [small(algorithm)] * 5, SEEDS[:5])
    advance(agent, 192)
    if algorithm in PLANNERS:
        assert not drawn
        return
    assert len(drawn) >= (5 if algorithm in EVOLUTION else 10)  # later generations come one run at a time
    assert len({data for _, _, data in drawn}) == len(drawn)
    weights = [agent.parameters_of(run) for run in range(5)]
    for one, other in itertools.combinations(weights, 2):
        assert all(not np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_a_seed_means_the_same_whatever_the_settings(algorithm: str) -> None:
    """Variants of one seed start from the same weights and meet the same environments (common random numbers)."""
    runs = mixed(algorithm, 4)
    agent = make(algorithm, tasks(algorithm)[0], runs, [5, 5, 6, 5])
    observations = getattr(agent, "collector", agent).observations
    for run, same in ((1, True), (2, False), (3, True)):
        for name, weights in agent.parameters_of(run).items():
            if np.ptp(weights) > 0:  # drawn, not constant
                assert np.array_equal(weights, agent.parameters_of(0)[name]) is same
        assert np.array_equal(observations[run], observations[0]) is same


# ------------------------------------------------------------------------------------------------------------- resume
def assert_same_state(one: Any, other: Any, name: str = "state") -> None:
    """Two nested states hold the same bits."""
    if isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_same_state(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same_state(*pair, f"{name}[{index}]")
    elif isinstance(one, (np.ndarray, np.generic, torch.Tensor)):
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), name
    else:
        assert one == other and type(one) is type(other), name


@pytest.fixture(scope="module")
def another_process() -> Iterator[subprocess.Popen[str]]:
    """One that goes on from the checkpoints in the folders it is told of; started once, as torch takes its time."""
    command = [sys.executable, resume.__file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_resume_equals_no_pause(algorithm: str, tmp_path: Path, another_process: subprocess.Popen[str]) -> None:
    """Saved as the driver saves, loaded in another process, trained on: weights, moments, buffers, environments,
    generators and statistics are what they are without the pause."""
    names = {}
    for param in CASES:
        case, task, structure = param.values
        if case != algorithm or param.marks:
            continue
        runs, seeds, name = mixed(algorithm, 6, **structure), SEEDS[:6], str(param.id)
        agent = make(algorithm, task, runs, seeds)
        advance(agent, 288)
        agent.envs.park(4)
        resume.save(tmp_path / f"{name}.paused", agent)
        resume.save(tmp_path / f"{name}.unpaused", agent, advance(agent, 192))
        names[name] = (algorithm, task, runs, seeds, 192)
    (tmp_path / "cases.json").write_text(json.dumps(names))
    assert another_process.stdin is not None and another_process.stdout is not None
    print(tmp_path, file=another_process.stdin, flush=True)
    assert another_process.stdout.readline() == "done\n"  # else its traceback is on stderr
    for name in names:
        unpaused = resume.load_state(tmp_path / f"{name}.unpaused")
        assert_same_state(unpaused, resume.load_state(tmp_path / f"{name}.resumed"), name)
        assert (tmp_path / f"{name}.unpaused").read_bytes() == (tmp_path / f"{name}.resumed").read_bytes()


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_state_replaces_whatever_was_there(algorithm: str) -> None:
    """An agent that has already trained, from another seed, goes on as the one whose state it loads."""
    task, runs = tasks(algorithm)[0], mixed(algorithm, 3, **switches(algorithm))
    one, other = make(algorithm, task, runs, [1, 2, 3]), make(algorithm, task, runs, [4, 5, 6])
    advance(one, 96)
    advance(other, 192)
    other.load_state(one.state())
    other.envs.load_state(one.envs.state())
    advance(one, 192), advance(other, 192)
    assert_same_state(one.state(), other.state())
    assert_same_state(one.envs.state(), other.envs.state())


# ------------------------------------------------------------------------------------------------ Table 1 as one group
def test_a_group_of_33_equals_33_groups_of_one() -> None:
    """Table 1 as it is run: eleven objectives, three seeds, the sizes of the networks and minibatches of the paper."""
    import tomllib

    experiment = tomllib.loads((resume.ROOT / "suites" / "experiments" / "ppo_table1.toml").read_text())
    (entry,) = experiment["algorithms"]
    assert len(entry["variants"]) == 11
    preset = algorithms.common.config.presets("ppo")[entry["preset"]]
    short = {"num_steps": 576, "num_epochs": 2}  # more than ppo.CHUNK, to no multiple of it
    runs = [preset | entry.get("overrides", {}) | variant | short for variant in entry["variants"].values()] * 3
    seeds = [seed for seed in range(3) for _ in range(11)]
    task = "Walker2d-v5"
    company = train("ppo", task, runs, seeds, 1152)
    # The three adaptive penalties may still have taken the same decisions.
    assert len({result["weights/actor.weight1"].tobytes() for result in company}) >= 27
    for i in range(33):
        (alone,) = train("ppo", task, runs[i : i + 1], seeds[i : i + 1], 1152)
        assert_same(company[i], alone, f"run {i}")
