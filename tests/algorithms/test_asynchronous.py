"""Asynchronous actor-learners: the serial schedule against slow loops straight from arXiv:1602.01783, number by number;
worker processes that start, learn, count, stop, go on and fail as they should."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_recurrent as recurrent
import torch
from cases import assert_same, make
from probes import ActionToReward, Probe
from resume import ROOT
from test_policy_gradient import leaves, policy_of, values_of

import algorithms
import suites
from algorithms.common.asynchronous import AsynchronousAgent, Worker
from algorithms.common.config import load_config, stack
from algorithms.common.returns import discounted_sums
from algorithms.common.streams import generator
from bench import DONE, STOPPED, drive, plan, store, tensors
from suites.vector import Step

inf = math.inf
LIMIT = 9  # env_steps of an episode in the loops below, so that time limits and terminations come up
W, T, ROUNDS = 3, 16, 3


# --------------------------------------------------------------------------------------------------- the paper's loops
class Loop:
    """W workers of one run, in the order of their numbers: all act and accumulate, then all apply."""

    def __init__(self, agent: Any, run: int, task: str, setting: dict[str, Any], dtype: torch.dtype = torch.float64):
        self.setting, self.seed = setting, agent.seeds[run]
        self.theta = leaves(agent.parameters_of(run), dtype)
        self.own = [self.copy() for _ in range(W)]
        self.shares = setting["share_statistics"]
        self.target = self.copy()
        self.squares = [{name: torch.zeros_like(x) for name, x in self.theta.items()} for _ in range(W)]
        self.total = 0  # T
        self.lasts: list[float] = []  # every worker's last epsilon
        self.worlds = [suites.make(task, 1, 1) for _ in range(W)]
        self.seen = []
        for w, world in enumerate(self.worlds):
            world.first_env, world.max_episode_steps = w, LIMIT
            self.seen.append(world.reset([self.seed])[0, 0])

    def copy(self) -> dict[str, torch.Tensor]:
        return {name: x.detach().clone().requires_grad_() for name, x in self.theta.items()}

    def step(self, w: int, action: Any) -> tuple[float, np.ndarray, bool, bool]:
        """Reward, the true successor, whether it terminates, whether it is cut."""
        world = self.worlds[w]
        discrete = world.num_actions is not None
        step = world.step(np.asarray(action).reshape((1, 1) if discrete else (1, 1, -1)))
        self.seen[w] = step.observations[0, 0]
        successor, end = torch.from_numpy(step.next_observations[0, 0]).double(), step.terminations[0, 0]
        return float(step.rewards[0, 0]), successor, bool(end), bool(step.truncations[0, 0])

    def choose(self, w: int, x: Any, u: np.ndarray) -> int:
        """Epsilon-greedily, by the epsilon of the present T: all act before anyone's steps are counted."""
        share = min(self.total / self.setting["epsilon_steps"], 1.0)
        explore = u[0] < 1.0 + (self.lasts[w] - 1.0) * share
        return int(u[1] * 2) if explore else int(q_values(self.own[w], x).argmax())

    def apply(self, w: int, gradient: list[torch.Tensor]) -> None:
        """Shared RMSProp; then worker w copies theta."""
        setting, squares = self.setting, self.squares[0 if self.shares else w]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        scale = min(1.0, setting["max_grad_norm"] / (norm + 1e-6))
        rate = setting["learning_rate"] * max(1 - self.total / setting["anneal_steps"], 0)
        with torch.no_grad():
            for (name, x), g in zip(self.theta.items(), gradient, strict=True):
                squares[name].mul_(0.99).add_(0.01 * (scale * g).square())
                x -= rate * scale * g / (squares[name] + setting["optimizer_epsilon"]).sqrt()
        self.total += T
        self.own[w] = self.copy()

    def update_target(self) -> None:
        if self.total // self.setting["target_period"] > (self.total - T) // self.setting["target_period"]:
            self.target = self.copy()

    def gradient(self, w: int, losses: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.autograd.grad(torch.stack(losses).sum(), list(self.own[w].values())))


BASE = {
    "schedule": "serial", "num_envs": W, "num_steps": T, "hidden_sizes": (8, 8), "optimizer_epsilon": 1e-3,
    "learning_rate": 0.01, "gamma": 0.9,
}  # fmt: skip
DIFFERENT = ({"anneal_steps": inf, "max_grad_norm": inf}, {"anneal_steps": 200.0, "max_grad_norm": 5.0})


def built(algorithm: str, task: str, settings: list[dict[str, Any]]) -> Any:
    """Runs of the serial schedule on a task with short episodes."""
    agent = make(algorithm, task, settings, [7, 8])
    agent.envs.max_episode_steps = LIMIT
    return agent


def assert_near(agent: Any, run: int, loop: Loop) -> None:
    """The shared weights, and every worker's own."""
    for name, ours in agent.parameters_of(run).items():
        assert np.abs(ours - loop.theta[name].detach().numpy()).max() < 2e-5, (run, name)
        for w, own in enumerate(loop.own):
            worker = agent.learners.own[name][run * W + w].detach().numpy()
            assert np.abs(worker - own[name].detach().numpy()).max() < 2e-5, (run, w, name)
    assert agent.shared.env_steps == loop.total == agent.envs.env_steps


@pytest.mark.parametrize(("task", "share"), [("CartPole-v1", True), ("Pendulum-v1", False)])
def test_a3c_is_the_paper_s_loop(task: str, share: bool) -> None:
    """Algorithm S3, from the environments' seeds on: actions, returns, gradients, updates and copies."""
    settings = [
        BASE | one | {"share_statistics": share, "time_limit_bootstrap": bootstrap, "ent_coef": 0.1, "vf_coef": 2.0}
        for one, bootstrap in zip(DIFFERENT, (1.0, 0.0), strict=True)
    ]
    agent = built("a3c", task, settings)
    loops = [Loop(agent, run, task, setting) for run, setting in enumerate(settings)]
    for _ in range(ROUNDS):
        agent.iterate()
    ended = 0
    for run, loop in enumerate(loops):
        rng = generator(loop.seed, "actions")
        for _ in range(ROUNDS):
            gradients = []
            for w in range(W):
                own, steps, losses = loop.own[w], [], []
                if agent.envs.num_actions:
                    noise = -np.log(-np.log(np.maximum(rng.random((T, 1, 2), np.float32), np.float32(1e-20))))
                else:
                    noise = rng.standard_normal((T, 1, 1), np.float32)
                for i in range(T):
                    s = torch.from_numpy(loop.seen[w]).double()
                    pi = policy_of(own, s)
                    draw = torch.from_numpy(noise[i, 0])
                    a = (pi.logits + draw).argmax(-1) if agent.envs.num_actions else pi.mean + pi.stddev * draw
                    a = a.detach()
                    steps.append((s, a, *loop.step(w, a.numpy())))
                R = 0.0
                for i in reversed(range(T)):
                    s, a, r, successor, terminated, cut = steps[i]
                    if terminated or (cut and loop.setting["time_limit_bootstrap"] == 0):
                        R = 0.0
                    elif cut or i == T - 1:
                        R = float(values_of(own, successor).detach())
                    ended += terminated + 2 * cut
                    R = r + 0.9 * R
                    pi, v = policy_of(own, s), values_of(own, s)
                    log_prob, entropy = pi.log_prob(a).sum(), pi.entropy().sum()
                    losses.append(-log_prob * (R - float(v.detach())) - 0.1 * entropy + (R - v).square().sum())
                gradients.append(loop.gradient(w, losses))
            for w in range(W):
                loop.apply(w, gradients[w])
        assert_near(agent, run, loop)
    assert ended > 20


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_a3c_lstm_is_the_paper_s_loop(task: str) -> None:
    """On what its workers met: every worker's own weights, memory, resets and gradient, and the order of updates."""
    more = {"share_statistics": True, "hidden_sizes": (8, 8), "lstm_size": 8, "ent_coef": 0.1, "vf_coef": 2.0}
    settings = [
        BASE | one | more | {"time_limit_bootstrap": bootstrap}
        for one, bootstrap in zip(DIFFERENT, (1.0, 0.0), strict=True)
    ]
    agent = built("a3c_lstm", task, settings)
    loops = [Loop(agent, run, task, setting, torch.float32) for run, setting in enumerate(settings)]
    met: list[Any] = []
    gradient = agent.learners._gradient
    agent.learners._gradient = lambda rollout: (
        met.append((rollout, agent.learners._sequences(rollout))) or gradient(rollout)
    )
    carry, first = torch.zeros(2 * W, 1, 32), torch.ones(2 * W, 1, dtype=torch.bool)
    for _ in range(ROUNDS):
        agent.iterate()
        rollout, sequences = met[-1]
        assert torch.equal(sequences.starts[:, 0], first) and torch.allclose(sequences.carry, carry, atol=1e-4)
        first = torch.from_numpy(rollout.terminations[-1] | rollout.truncations[-1])
        for run, loop in enumerate(loops):
            gradients = []
            for w, own in enumerate(loop.own):
                k = run * W + w
                entries = [entry[:, k] for entry in rollout]
                begin = sequences.carry[k], sequences.starts[k]
                _, before, advantages = recurrent.targets(own, loop.setting | {"gae_lambda": 1.0}, entries, *begin)
                policy, values, carries = recurrent.networks(own, torch.from_numpy(entries[0]), *begin)
                carry[k] = carries[-1].detach()
                loss = -policy.log_prob(torch.from_numpy(entries[1])) * advantages - 0.1 * policy.entropy()
                loss = loss + (advantages + before - values) ** 2
                gradients.append(loop.gradient(w, [loss.sum()]))
            for w in range(W):
                loop.apply(w, gradients[w])
    for run, loop in enumerate(loops):
        assert_near(agent, run, loop)


def test_every_worker_has_a_memory_of_its_own() -> None:
    """A3C with a memory learns what nothing without one can, evaluated as the driver does it."""
    assert (recurrent.chances("a3c_lstm", True, 5000) == 1).all()


def q_values(weights: dict[str, torch.Tensor], x: Any) -> torch.Tensor:
    x = torch.as_tensor(x, dtype=torch.float64)
    for layer in range(3):
        x = (torch.relu(x) if layer else x) @ weights[f"q.weight{layer}"] + weights[f"q.bias{layer}"]
    return x[0]


@pytest.mark.parametrize("algorithm", ["async_one_step_q", "async_one_step_sarsa", "async_nstep_q"])
def test_value_based_methods_are_the_paper_s_loops(algorithm: str) -> None:
    """Algorithms 1 and S2, from the environments' seeds on: exploration, targets, gradients, updates and copies."""
    settings = [
        BASE | one | {"share_statistics": False, "epsilon_steps": steps, "target_period": period}
        for one, steps, period in zip(DIFFERENT, (60.0, 200.0), (40.0, 100.0), strict=True)
    ]
    agent = built(algorithm, "CartPole-v1", settings)
    rng = np.random.default_rng(3)
    for name, shape in agent.parameters.shapes.items():  # weights by which the best action depends on the observation
        drawn = rng.standard_normal((1, *shape)) * ("weight" in name)
        for weights in (agent.parameters, agent.shared.target, agent.learners.own):
            weights.fill(name, np.repeat(drawn, weights.num_runs, 0))
    loops = [Loop(agent, run, "CartPole-v1", setting) for run, setting in enumerate(settings)]
    for _ in range(ROUNDS):
        agent.iterate()
    cuts = 0
    for run, loop in enumerate(loops):
        rng, chances = generator(loop.seed, "actions"), generator(loop.seed, "epsilon")
        loop.lasts = [0.1 if u < 0.4 else 0.01 if u < 0.7 else 0.5 for u in chances.random(W)]
        sarsa = "sarsa" in algorithm
        following = [loop.choose(w, loop.seen[w], rng.random((1, 1, 2))[0, 0]) if sarsa else 0 for w in range(W)]
        for _ in range(ROUNDS):
            gradients = []
            for w in range(W):
                uniform, own, steps, losses = rng.random((T, 1, 2))[:, 0], loop.own[w], [], []
                for i in range(T):
                    s = loop.seen[w]
                    a = following[w] if sarsa else loop.choose(w, s, uniform[i])
                    r, successor, terminated, cut = loop.step(w, a)
                    if sarsa:
                        following[w] = loop.choose(w, loop.seen[w], uniform[i])
                        taken = loop.choose(w, successor, uniform[i]) if cut else following[w]
                    else:
                        taken = int(q_values(loop.target, successor).argmax())
                    worth = float(q_values(loop.target, successor)[taken].detach())
                    steps.append((s, a, r, worth, terminated, cut))
                    cuts += cut and not terminated
                R = 0.0
                for i in reversed(range(T)):
                    s, a, r, worth, terminated, cut = steps[i]
                    if terminated:
                        R = 0.0
                    elif cut or i == T - 1 or "one_step" in algorithm:
                        R = worth
                    R = r + 0.9 * R
                    losses.append((R - q_values(own, s)[a]).square())
                gradients.append(loop.gradient(w, losses))
            for w in range(W):
                loop.apply(w, gradients[w])
                loop.update_target()
        assert_near(agent, run, loop)
        for name, target in agent.shared.target.views.items():
            assert np.abs((target[run].detach() - loop.target[name].detach()).numpy()).max() < 2e-5, (run, name)
    assert cuts > 10


@pytest.mark.parametrize("memory", ["", "_lstm"])
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_one_worker_is_a2c(task: str, memory: str) -> None:
    """Bit for bit. A2C's gradient is the mean over its four steps and A3C's the sum, which RMSProp divides out but for
    its epsilon; powers of two multiply without rounding."""
    common = {"num_envs": 1, "num_steps": 4, "anneal_steps": 300.0, "max_grad_norm": inf, "vf_coef": 2.0}
    runs = [common | {"gamma": gamma, "ent_coef": 0.02} for gamma in (0.9, 0.99)]
    a2c = make(f"a2c{memory}", task, [run | {"optimizer_epsilon": 2.0**-16} for run in runs], [3, 4])
    a3c = make(
        f"a3c{memory}", task, [run | {"optimizer_epsilon": 2.0**-12, "schedule": "serial"} for run in runs], [3, 4]
    )
    for _ in range(60):
        a2c.iterate(), a3c.iterate()
    for run in range(2):
        assert_same(a2c.parameters_of(run), a3c.parameters_of(run), f"run {run}")
    assert a2c.envs.drain_episodes() == a3c.envs.drain_episodes()


# ---------------------------------------------------------------------------------------------------- worker processes
class Resumable(ActionToReward):
    def _save(self) -> dict[str, Any]:
        return {"clock": self.clock.tolist(), "sign": self.sign.tolist(),
                "generators": [rng.bit_generator.state for rng in self.generators]}  # fmt: skip

    def _load(self, state: dict[str, Any]) -> None:
        self.clock[:], self.sign[:] = state["clock"], state["sign"]
        for rng, one in zip(self.generators, state["generators"], strict=True):
            rng.bit_generator.state = one


class Faulty(ActionToReward):
    """Run 0's environment is broken from the third step on; `bug`: the worker with environment 1 has a fault."""

    bug = False

    def _advance(self, actions: Any, out: Step) -> None:
        super()._advance(actions, out)
        if self.env_steps >= 2 and not self.parked[0]:
            self.park(0, "broken")
        if self.bug and self.first_env == 1:
            raise ValueError("a bug")


class Buggy(Faulty):
    bug = True


def raced(algorithm: str, probe: type[Probe], **settings: Any) -> Any:
    """Two runs of two worker processes each, small and quick."""
    small = {"num_envs": 2, "num_steps": 4, "hidden_sizes": (8, 8), "learning_rate": 3e-3, "gamma": 0.5}
    cfg = stack([load_config(algorithm, None, small | settings)] * 2)
    envs = probe(2, 2, discrete=True)
    envs.remake = partial(probe, 2, discrete=True)
    return algorithms.load(algorithm).Agent(cfg, envs, [3, 4])


def alive(pids: list[int]) -> list[int]:
    """Those that run; one that has ended and waits to be asked for its exit code does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        found += [pid] * (state != "Z")
    return found


def test_a_process_takes_the_same_turns() -> None:
    """One worker in a process, of which there are no others, is the serial schedule's, bit for bit."""
    settings = [{"num_envs": 1, "num_steps": 4, "learning_rate": rate} for rate in (3e-3, 1e-3)]
    serial = make("a3c", "CartPole-v1", [one | {"schedule": "serial"} for one in settings], [3, 4])
    agent = make("a3c", "CartPole-v1", settings, [3, 4])
    worker = Worker(agent.learners_class, agent.cfg, agent.envs.remake, agent.seeds, agent.shared, 0)
    draws = {generator(3, "actions", w).random() for w in range(4)}
    assert len(draws) == 4 and generator(3, "actions").random() in draws  # worker 0's are the run's
    report = worker.advance(200, np.zeros(2, bool))
    for _ in range(50):
        serial.iterate()
    assert report.turns == 50 and agent.shared.env_steps == serial.envs.env_steps == 200
    for run in range(2):
        assert_same(agent.parameters_of(run), serial.parameters_of(run))
    ours, theirs = report.episodes, serial.envs.drain_episodes()
    assert [one._replace(env_steps=0) for one in ours] == [one._replace(env_steps=0) for one in theirs] != []
    # An episode is told when its turn ends.
    assert all(0 <= one.env_steps - other.env_steps < 4 for one, other in zip(ours, theirs, strict=True))


def test_hogwild_learns_counts_and_goes_on(tmp_path: Path) -> None:
    agent = raced("a3c", Resumable)
    assert not agent.reproducible and agent._crew is None  # nothing has been started for nothing
    episodes = []
    for _ in range(60):
        before, metrics = agent.envs.env_steps, agent.iterate()
        assert agent.envs.env_steps >= before + agent.steps_per_iteration
        episodes += agent.envs.drain_episodes()
        if (agent.act(np.zeros((2, 1, 1), np.float32)) == 1).all() and (agent.shared.steps > 0).all():
            break
    else:
        pytest.fail("it has not learned which of two actions is the better one")
    env_steps = agent.envs.env_steps
    assert agent.shared.steps.sum() == env_steps and (agent.shared.steps > 0).all()  # both workers were at work
    assert env_steps < before + agent.steps_per_iteration + 2 * agent.cfg.num_steps
    for run in range(2):  # an episode lasts one step
        ends = [episode.env_steps for episode in episodes if episode.run == run]
        assert len(ends) == env_steps and ends == sorted(ends) and ends[-1] == env_steps
    assert {episode.episode_length for episode in episodes} == {1}
    assert set(metrics) == {"value_loss", "entropy"} and all(x.shape == (2,) for x in metrics.values())
    assert agent.timers["learn"] > 0 and agent.cpu_elsewhere > 0

    tensors.save_state(tmp_path / "state", {"agent": agent.state(), "envs": agent.envs.state()})
    saved = agent.state()["workers"]  # two runs, two workers: four streams of each kind, and they differ
    drawn = [rng["state"]["inc"] for one in saved for rng in one["streams"]["actions"]]
    drawn += [rng["state"]["inc"] for one in saved for rng in one["envs"]["environments"]["generators"]]
    assert len(set(drawn)) == len(drawn) == 8
    pids = [process.pid for process in agent.crew.processes]
    assert alive(pids) == pids
    agent.close()
    assert not alive(pids)

    state, other = tensors.load_state(tmp_path / "state"), raced("a3c", Resumable)
    other.load_state(state["agent"])
    other.envs.load_state(state["envs"])
    same = other.state()
    for one, saved in zip(same["workers"], state["agent"]["workers"], strict=True):
        assert one["streams"] == saved["streams"]
        assert np.array_equal(one["learners"]["own"]["flat"], saved["learners"]["own"]["flat"])
        assert one["envs"]["environments"] == saved["envs"]["environments"]
    assert all(np.array_equal(same["shared"][name], saved) for name, saved in state["agent"]["shared"].items())
    for run in range(2):
        assert_same(agent.parameters_of(run), other.parameters_of(run))
    other.iterate()
    assert other.envs.env_steps >= env_steps + other.steps_per_iteration
    pids = [process.pid for process in other.crew.processes]
    del other  # an agent that nobody holds holds no processes
    assert not alive(pids)


@pytest.mark.parametrize("algorithm", ["async_one_step_sarsa", "async_nstep_q"])
def test_hogwild_shares_the_target_network(algorithm: str) -> None:
    agent = raced(algorithm, ActionToReward, target_period=20.0, epsilon_steps=400.0)
    start = agent.shared.target.flat.clone()
    for _ in range(60):
        agent.iterate()
        if (agent.act(np.zeros((2, 1, 1), np.float32)) == 1).all() and (agent.shared.steps > 0).all():
            break
    else:
        pytest.fail("it has not learned which of two actions is the better one")
    shared = agent.shared
    assert np.abs(shared.target_updates - shared.env_steps // 20).max() <= 1  # whoever finds it late copies late
    assert (shared.target.flat - shared.parameters.flat).abs().max() < 0.1 < (shared.target.flat - start).abs().max()
    agent.close()


def test_failures_of_worker_processes_are_told() -> None:
    """An environment that fails takes its run out; a fault or a killed process is an error that says which."""
    agent = raced("a3c", Faulty)
    agent.iterate()
    assert agent.envs.errors == {0: "broken"} and agent.envs.parked.tolist() == [True, False]
    ends = [episode.run for episode in agent.envs.drain_episodes()]
    assert ends.count(0) <= 2 * agent.cfg.num_envs and ends.count(1) == agent.envs.env_steps
    agent.envs.park(1)  # as the driver does
    agent.iterate()
    assert not agent.envs.drain_episodes()
    processes = agent.crew.processes
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"^worker 1 of 2 failed: exit code -9"):
        agent.iterate()
    assert not alive([process.pid for process in processes])

    agent = raced("a3c", Buggy)
    with pytest.raises(RuntimeError, match=r"(?s)^Traceback.*\nworker 1 of 2 failed: ValueError: a bug$"):
        for _ in range(1000):  # until it gets its turn
            agent.iterate()


def test_worker_processes_end_with_their_parent(tmp_path: Path) -> None:
    """However it ends, and whatever they are at."""
    script = """
        import os, signal, time
        from algorithms.common.processes import Crew
        class Busy:
            def __init__(self, index): pass
            def pid(self): return os.getpid()
            def work(self): time.sleep(600)
        if __name__ == "__main__":
            crew = Crew(Busy, 2)
            print(*crew.ask("pid"), flush=True)
            for channel in crew.channels:
                channel.send(("work", ()))
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2 and done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pids)


def test_the_driver_trains_saves_and_goes_on(tmp_path: Path) -> None:
    """Stopped and started again; the manifest says what cannot be had again, and only then."""
    for schedule in ("hogwild", "serial"):
        override = {"schedule": schedule, "num_envs": 2, "num_steps": 4, "hidden_sizes": [8]}
        raw = {
            "tasks": ["CartPole-v1"], "steps": 1700, "seeds": 2,
            "algorithms": [{"name": "a3c", "overrides": override}],
        }  # fmt: skip
        experiment = plan.resolve(plan.expand("test", raw, "here"))
        group, folder = plan.Group(experiment.runs), tmp_path / schedule / ".groups" / "group"
        settings = {"device": "cpu", "checkpoint_seconds": 1e9, "tensorboard": False, "fingerprint": {}}
        plan.write_plan(experiment, group, folder, **settings)
        assert drive.train(folder, lambda: True) == STOPPED
        assert drive.train(folder, lambda: False) == DONE
        for run in experiment.runs:
            manifest = store.read_manifest(tmp_path / schedule / run.path)
            assert manifest is not None and manifest["status"] == store.FINISHED
            assert manifest.get("reproducible") is (False if schedule == "hogwild" else None)
            assert manifest["env_steps"] >= 1700 and len(manifest["sessions"]) == 2


def test_discounted_sums_by_hand() -> None:
    """Two environments: one ends and is cut, the other goes on to the end of the rollout."""
    rewards = np.array([[[1.0, 1.0]], [[2.0, 1.0]], [[3.0, 1.0]], [[4.0, 1.0]]])
    next_values = np.array([[[9.0, 9.0]], [[9.0, 9.0]], [[8.0, 9.0]], [[6.0, 2.0]]])
    terminations = np.array([[[False] * 2], [[True, False]], [[False] * 2], [[False] * 2]])
    ends = terminations | np.array([[[False] * 2], [[False] * 2], [[True, False]], [[False] * 2]])
    sums = discounted_sums(rewards, next_values, terminations, ends, np.array([0.5]))
    assert sums[:, 0, 0].tolist() == [1 + 0.5 * 2, 2.0, 3 + 0.5 * 8, 4 + 0.5 * 6]
    assert sums[:, 0, 1].tolist() == [1.875 + 0.125, 1.75 + 0.25, 1.5 + 0.5, 1 + 1.0]


def test_workers_explore_in_their_own_ways() -> None:
    """The last epsilons are drawn for each worker of each run, as often as the paper says."""
    agent = make("async_one_step_q", "CartPole-v1", [{"schedule": "serial", "num_envs": 64}] * 4, [1, 2, 3, 4])
    ends = agent.learners.epsilon_end.reshape(4, 64)
    counts = [(ends == end).mean() for end in (0.1, 0.01, 0.5)]
    assert np.abs(np.array(counts) - [0.4, 0.3, 0.3]).max() < 0.1 and sum(counts) == 1
    assert len({row.tobytes() for row in ends}) == 4
    assert load_config("async_one_step_q").epsilon_ends == (0.1, 0.01, 0.5)
    with pytest.raises(ValueError, match="epsilon_shares"):
        load_config("async_one_step_q", None, {"epsilon_shares": [0.5, 0.4]})


def test_impossible_settings_are_refused() -> None:
    names = [name for name in algorithms.names() if issubclass(algorithms.load(name).Agent, AsynchronousAgent)]
    assert len(names) >= 4
    for name in names:
        for bad in ("learning_rate", "num_envs", "num_steps", "optimizer_epsilon"):
            with pytest.raises(ValueError, match=bad):
                load_config(name, None, {bad: 0})
        with pytest.raises(ValueError, match="schedule"):
            load_config(name, None, {"schedule": "parallel"})
    with pytest.raises(ValueError, match="made anew"):
        envs = ActionToReward(1, 2, discrete=True)
        algorithms.load("a3c").Agent(stack([load_config("a3c", None, {"num_envs": 2})]), envs, [1])
