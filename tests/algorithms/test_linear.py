"""Linear actor-critics: tile coding, policies and updates against slow loops over their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import make

from algorithms import copdac_q, offpac
from algorithms.common import linear
from algorithms.common.config import load_config
from algorithms.common.streams import generator
from algorithms.common.tiles import TileCoder

inf = math.inf
PUDDLES, CAR, POLE = "PuddleWorld-v0", "MountainCarRLPark-v0", "CartPole-v1"
TILES = {"num_tilings": 3, "num_tiles": 4, "memory": 120}  # plain where 3 * 5 * 5 tiles suffice
SEEDS = [11, 12, 13]


# ---------------------------------------------------------------------------------------------------------- tile coding
def slow_tiles(
    observation: list[float], low: list[float], high: list[float], k: int, tiles: int, memory: int
) -> list[int]:
    """Section 9.5.4 of Sutton & Barto for one observation, a number at a time; 64-bit integers by hand."""
    bounded = [math.isfinite(a) and math.isfinite(b) for a, b in zip(low, high, strict=True)]
    cells = (tiles + 1) ** len(low)
    hashed = not all(bounded) or k * cells > memory
    size, active, mask = memory // k if hashed else cells, [], 2**64 - 1
    for tiling in range(k):
        place = []
        for d, x in enumerate(observation):
            at = min(max((x - low[d]) * (tiles / (high[d] - low[d])), 0.0), tiles) if bounded[d] else x
            place.append(math.floor(at + tiling * (2 * d + 1) % k / k))
        if hashed:
            code = 0
            for c in place:
                code = ((code ^ (c & mask)) * 0x100000001B3) & mask
                for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                    code = ((code ^ (code >> 33)) * factor) & mask
            active.append(tiling * size + (code ^ (code >> 33)) % size)
        else:
            active.append(tiling * size + sum(c * (tiles + 1) ** d for d, c in enumerate(place)))
    return [*active, k * size]


@pytest.mark.parametrize(
    ("low", "high", "memory", "hashed"),
    [
        ([-1.2, -0.07], [0.6, 0.07], 4096, False),
        ([-1.2, -0.07], [0.6, 0.07], 100, True),
        ([0.0, -inf, -2.0], [1.0, inf, 2.0], 4096, True),
    ],
)
def test_tiles_are_those_of_a_slow_loop(low: list[float], high: list[float], memory: int, hashed: bool) -> None:
    coder = TileCoder(np.array(low), np.array(high), 8, 5, memory)
    assert coder.hashed is hashed and coder.num_features <= memory + 1
    rng = np.random.default_rng(0)
    edges = [np.where(np.isfinite(x), x, 0.0) for x in (low, high)]
    observations = np.concatenate(([edges], 3 * rng.standard_normal((1, 200, len(low)))), 1).astype(np.float32)
    found = coder(observations)
    assert found.dtype == np.int64 and found.min() >= 0 and found.max() == coder.num_features - 1
    assert all(len(set(row)) == coder.num_active == 9 for row in found[0].tolist())
    expected = [slow_tiles(x, low, high, 8, 5, memory) for x in observations[0].astype(float).tolist()]
    assert found[0].tolist() == expected
    assert np.array_equal(coder(np.full((1, 1, len(low)), 1e30, np.float32)) >= 0, np.ones((1, 1, 9), bool))


def test_tilings_are_displaced() -> None:
    """Of two points closer than a tile, the tilings that tell them apart are as many as the distance says."""
    coder = TileCoder(np.zeros(1), np.ones(1), 10, 5, 4096)
    shared = [np.isin(coder(np.full((1, 1, 1), 0.5)), coder(np.full((1, 1, 1), x))).sum() for x in (0.519, 0.6, 0.71)]
    assert shared == [11, 6, 1]  # with the feature that is always active


# ------------------------------------------------------------------------------------------------------------- policies
def test_the_normal_policy_is_torchs() -> None:
    rng, policy = np.random.default_rng(1), linear.Normal(3)
    outputs, actions = rng.standard_normal((5, 6)), rng.standard_normal((5, 3))
    h = torch.tensor(outputs, requires_grad=True)
    log_probs = torch.distributions.Normal(h[:, :3], h[:, 3:].exp()).log_prob(torch.tensor(actions)).sum(-1)
    assert policy.log_prob(outputs, actions) == pytest.approx(log_probs.detach().numpy(), rel=1e-12)
    (slope,) = torch.autograd.grad(log_probs.sum(), h)
    assert policy.slope(outputs, actions) == pytest.approx(slope.numpy(), rel=1e-12)
    variance = np.exp(2 * outputs[:, [3, 4, 5, 3, 4, 5]])
    scaled = linear.scaled_slope(policy, outputs, actions, np.array([True, False, True, False, True]))
    assert scaled[::2] == pytest.approx((slope.numpy() * variance)[::2], rel=1e-12)
    assert np.array_equal(scaled[1::2], policy.slope(outputs, actions)[1::2])
    assert policy.sample(outputs, np.zeros((5, 3))) == pytest.approx(policy.mode(outputs))


def test_the_softmax_policy_is_torchs() -> None:
    rng, policy = np.random.default_rng(2), linear.Softmax(4)
    outputs, actions = 3 * rng.standard_normal((6, 4)), rng.integers(0, 4, 6)
    h = torch.tensor(outputs, requires_grad=True)
    log_probs = torch.distributions.Categorical(logits=h).log_prob(torch.tensor(actions))
    assert policy.log_prob(outputs, actions) == pytest.approx(log_probs.detach().numpy(), rel=1e-12)
    (slope,) = torch.autograd.grad(log_probs.sum(), h)
    assert policy.slope(outputs, actions) == pytest.approx(slope.numpy(), rel=1e-12)
    assert np.array_equal(
        linear.scaled_slope(policy, outputs, actions, np.ones(6, bool)), policy.slope(outputs, actions)
    )


def test_importance_weights_by_hand() -> None:
    softmax, outputs = linear.Softmax(2), np.log([[1.0, 3.0]] * 2)  # pi = 1/4, 3/4; b = 1/2
    found = offpac.importance_weights(softmax.log_prob(outputs, np.array([0, 1])), np.log([0.5, 0.5]))
    assert found == pytest.approx([0.5, 1.5])
    agent = make("offpac", PUDDLES, [{**TILES, "noise_std": 2.0}], [1])
    noise = np.array([[0.0, 1.0]])  # b: two normals with sigma 2, one at its middle, the other at one sigma
    assert np.exp(agent.behaviour_log_prob(noise)) == pytest.approx([math.exp(-0.5) / (2 * math.pi * 4)])
    pi = agent.policy.log_prob(np.zeros((1, 4)), 2.0 * noise)  # sigma 1: at two of its own
    assert offpac.importance_weights(pi, agent.behaviour_log_prob(noise)) == pytest.approx([4 * math.exp(-2 + 0.5)])
    uniform = make("offpac", PUDDLES, [{**TILES, "behaviour": "uniform"}], [1])
    assert np.exp(uniform.behaviour_log_prob(noise)) == pytest.approx([0.25])  # over [-1, 1]^2
    pole = make("offpac", POLE, [TILES], [1])
    assert np.exp(pole.behaviour_log_prob(np.zeros((3, 2)))) == pytest.approx([0.5] * 3)


# ------------------------------------------------------------------------------------- the papers' loops, one at a time
class Literal:
    """One run with dense feature vectors: x(s) [F], its environments and its draws one by one."""

    def __init__(self, algorithm: str, task: str, settings: dict[str, Any], seed: int):
        agent = make(algorithm, task, [settings], [seed])
        self.cfg, self.envs, self.coder = load_config(algorithm, None, settings), agent.envs, agent.coder
        self.discrete, self.num = agent.discrete, agent.action_size
        self.observations, self.rng = agent.observations[0], generator(seed, "actions")
        self.box = None if self.discrete else (self.envs.action_low, self.envs.action_high)

    def x(self, observation: np.ndarray) -> np.ndarray:
        vector = np.zeros(self.coder.num_features)
        vector[self.coder(observation[None, None])[0, 0]] = 1.0
        return vector

    def alpha(self, name: str) -> float:
        return float(getattr(self.cfg, name) / self.coder.num_active)

    def normals(self) -> np.ndarray:
        return self.rng.standard_normal((self.cfg.num_envs, self.num), np.float32).astype(float)

    def step(self, actions: list[Any]) -> list[tuple[np.ndarray, float, float, np.ndarray, bool]]:
        """Of each environment: x(s), r, gamma or 0, x(s'), whether the episode ended."""
        if self.box is not None:
            low, high = self.box
            actions = [(low + high) / 2 + (high - low) / 2 * a for a in actions]
        before, took = self.observations, self.envs.step(np.array([actions], np.int64 if self.discrete else np.float32))
        self.observations = took.observations[0]
        return [
            (
                self.x(before[n]), float(took.rewards[0, n]), 0.0 if took.terminations[0, n] else self.cfg.gamma,
                self.x(took.next_observations[0, n]), bool(took.terminations[0, n] or took.truncations[0, n]),
            )
            for n in range(self.cfg.num_envs)
        ]  # fmt: skip


def literal_copdac(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Section 4.3 with grad_theta mu(s) [F A, A] and phi(s, a) [F A] written out."""
    features, num = run.coder.num_features, run.num
    theta, w, u, v = np.zeros(features * num), np.zeros(features * num), np.zeros(features * num), np.zeros(features)
    alpha = {s: run.alpha(f"{name}learning_rate") for s, name in
             (("v", ""), ("w", "advantage_"), ("theta", "actor_"), ("u", "correction_"))}  # fmt: skip

    def jacobian(x: np.ndarray) -> np.ndarray:
        return np.kron(x[:, None], np.eye(num))  # of mu_j by theta_{f j}

    for _ in range(num_steps):
        noise = run.normals()
        actions = [
            jacobian(run.x(o)).T @ theta + run.cfg.noise_std * z for o, z in zip(run.observations, noise, strict=True)
        ]
        for action, (x, reward, discount, after, _) in zip(actions, run.step(actions), strict=True):
            grad = jacobian(x)
            phi = grad @ (action - grad.T @ theta)
            phi_after = jacobian(after) @ np.zeros(num)  # mu(s') - mu(s')
            delta = reward + discount * (phi_after @ w + v @ after) - (phi @ w + v @ x)
            error = phi @ u
            theta = theta + alpha["theta"] * grad @ (grad.T @ w)
            w = w + alpha["w"] * delta * phi
            v = v + alpha["v"] * delta * x
            if run.cfg.gradient:
                w = w - alpha["w"] * discount * phi_after * error
                v = v - alpha["v"] * discount * after * error
                u = u + alpha["u"] * (delta - error) * phi
    tables = {"theta": theta, "w": w, "v": v} | ({"u": u} if run.cfg.gradient else {})
    return {name: x if name == "v" else x.reshape(features, num) for name, x in tables.items()}


def literal_policy(run: Literal, u: np.ndarray, x: np.ndarray, action: Any) -> tuple[float, np.ndarray]:
    """log pi(a|s) and its gradient by u [F, P]: by autograd, times sigma^2 where that is asked for."""
    weights = torch.tensor(u, requires_grad=True)
    h = torch.tensor(x) @ weights
    if run.discrete:
        policy: Any = torch.distributions.Categorical(logits=h)
        log_prob = policy.log_prob(torch.tensor(action))
        scale = np.ones(len(h))
    else:
        policy = torch.distributions.Normal(h[: run.num], run.cfg.start_std * h[run.num :].exp())
        log_prob = policy.log_prob(torch.tensor(action)).sum()
        scale = np.tile(policy.scale.detach().numpy() ** 2, 2) if run.cfg.scaled else np.ones(len(h))
    (grad,) = torch.autograd.grad(log_prob, weights)
    return float(log_prob.detach()), grad.numpy() * scale


def literal_traces(run: Literal, num_steps: int) -> dict[str, np.ndarray]:
    """Both stochastic algorithms: Off-PAC's is the other with importance weights and GTD."""
    cfg, features, off = run.cfg, run.coder.num_features, isinstance(run.cfg, offpac.Config)
    v, w, u = np.zeros(features), np.zeros(features), np.zeros((features, run.num * (1 if run.discrete else 2)))
    alpha_v, alpha_u = run.alpha("learning_rate"), run.alpha("actor_learning_rate")
    alpha_w = run.alpha("correction_learning_rate") if off else 0.0
    e_v, e_u = [np.zeros_like(v) for _ in range(cfg.num_envs)], [np.zeros_like(u) for _ in range(cfg.num_envs)]
    trace_lambda = cfg.trace_lambda if cfg.traces else 0.0
    uniform = off and (run.discrete or cfg.behaviour == "uniform")
    for _ in range(num_steps):
        actions, behaviour = [], []
        if run.discrete:
            draws = run.rng.random((cfg.num_envs, run.num), np.float32)
            noise = -np.log(-np.log(np.maximum(draws, np.float32(1e-20))))
        else:
            noise = (2 * run.rng.random((cfg.num_envs, run.num), np.float32) - 1 if uniform else run.normals()).astype(
                float
            )
        for observation, z in zip(run.observations, noise, strict=True):
            h = run.x(observation) @ u
            if run.discrete:
                actions.append(int((z if off else h + z).argmax()))
                behaviour.append(-math.log(run.num))
            elif uniform:
                actions.append(z)
                behaviour.append(-run.num * math.log(2))
            else:
                sigma = np.full(run.num, cfg.noise_std) if off else cfg.start_std * np.exp(h[run.num :])
                actions.append(h[: run.num] + sigma * z)
                normal = torch.distributions.Normal(torch.tensor(h[: run.num]), torch.tensor(sigma))
                behaviour.append(float(normal.log_prob(torch.tensor(actions[-1])).sum()))
        for n, (x, reward, discount, after, ended) in enumerate(run.step(actions)):
            log_prob, grad = literal_policy(run, u, x, actions[n])
            rho = math.exp(log_prob - behaviour[n]) if off else 1.0
            delta = reward + discount * (v @ after) - v @ x
            e_v[n] = rho * (x + cfg.gamma * trace_lambda * e_v[n])
            e_u[n] = rho * (grad + cfg.gamma * trace_lambda * e_u[n])
            correction = discount * (1 - trace_lambda) * (w @ e_v[n]) * after if off else 0.0
            v, w = v + alpha_v * (delta * e_v[n] - correction), w + alpha_w * (delta * e_v[n] - (w @ x) * x)
            u = u + alpha_u * delta * e_u[n]
            if ended:
                e_v[n], e_u[n] = np.zeros_like(v), np.zeros_like(u)
    return {"v": v, "u": u} | ({"w": w} if off else {})


COPDAC = {"learning_rate": 0.3, "advantage_learning_rate": 0.2, "actor_learning_rate": 0.05}
TRACES = {"learning_rate": 0.1, "actor_learning_rate": 0.01, "trace_lambda": 0.6, "gamma": 0.9}
OFF = TRACES | {"correction_learning_rate": 0.05, "learning_rate": 0.05}


@pytest.mark.parametrize(
    ("algorithm", "task", "settings"),
    [
        ("copdac_q", PUDDLES, COPDAC),
        ("copdac_q", PUDDLES, COPDAC | {"gradient": True, "correction_learning_rate": 0.1, "num_envs": 2}),
        ("copdac_q", CAR, COPDAC | {"noise_std": 0.5}),
        ("actor_critic", CAR, TRACES),
        ("actor_critic", PUDDLES, TRACES | {"actor_learning_rate": 1e-4, "num_envs": 2}),
        ("actor_critic", PUDDLES, TRACES | {"actor_learning_rate": 1e-4, "scaled": 0.0, "start_std": 0.8}),
        ("actor_critic", POLE, TRACES | {"actor_learning_rate": 0.1}),
        ("actor_critic", CAR, TRACES | {"traces": False}),
        ("offpac", CAR, OFF | {"start_std": 0.7}),
        ("offpac", CAR, OFF | {"behaviour": "uniform", "traces": False, "num_envs": 2}),
        ("offpac", POLE, OFF),
    ],
)
def test_updates_are_the_papers_loops(algorithm: str, task: str, settings: dict[str, Any]) -> None:
    settings = settings | TILES
    agent = make(algorithm, task, [settings] * 2, SEEDS[:2])
    agent.envs.max_episode_steps = 30  # so that episodes end
    agent.iterate(), agent.iterate()
    loop = literal_copdac if algorithm == "copdac_q" else literal_traces
    for i in range(2):
        run = Literal(algorithm, task, settings, SEEDS[i])
        run.envs.max_episode_steps = 30
        expected, found = loop(run, 100), agent.parameters_of(i)
        assert found.keys() == expected.keys() and all(np.abs(x).max() > 0 for x in expected.values())
        for name, x in expected.items():
            # Actions reach the tasks in float32: where sums are rounded differently, steps differ by 1e-7 now and then.
            assert np.abs(found[name] - x).max() <= 1e-5 * np.abs(x).max(), name


def test_off_policy_is_on_policy_where_the_policies_are_the_same() -> None:
    """With pi uniform and standing still, rho is 1; with alpha_w = 0, GTD(lambda) is then TD(lambda)."""
    still = TILES | TRACES | {"actor_learning_rate": 0.0}
    on = make("actor_critic", POLE, [still] * 2, SEEDS[:2])
    off = make("offpac", POLE, [still | {"correction_learning_rate": 0.0}] * 2, SEEDS[:2])
    for _ in range(4):
        on.iterate(), off.iterate()
    assert np.abs(on.v).max() > 1 and off.v == pytest.approx(on.v, rel=1e-10)


# ------------------------------------------------------------------------------------------- the deterministic gradient
def test_the_actor_ascends_the_deterministic_policy_gradient() -> None:
    """I11: what COPDAC-Q adds to theta is grad_theta Q(s, mu_theta(s)), against finite differences; Q is compatible,
    with a mu that stays where it is."""
    agent = make("copdac_q", PUDDLES, [TILES | COPDAC | {"actor_learning_rate": 0.5}], [3])
    rng = np.random.default_rng(0)
    for weights in (agent.theta, agent.w, agent.v):
        weights[:] = rng.standard_normal(weights.shape)
    before, w, v = agent.theta.copy(), agent.w.copy(), agent.v.copy()
    x = agent.coder(np.array([[[0.3, 0.7]]], np.float32))[:, 0]

    def q_value(theta: np.ndarray) -> float:
        mu, fixed = linear.read(theta, x), linear.read(before, x)
        return float(copdac_q.action_values(mu - fixed, linear.read(w, x), linear.read(v, x))[0])

    nothing, noise = np.zeros(1), np.zeros((1, 2))
    agent._learn(linear.Sample(x, linear.read(before, x), noise, nothing, nothing, x, np.zeros(1, bool)), 0)
    step = (agent.theta - before)[0] / (0.5 / agent.coder.num_active)
    assert np.count_nonzero(step) == 2 * agent.coder.num_active
    for place in [*zip(x[0].tolist(), [0, 1, 0, 1], strict=True), (0, 0)]:
        nudge = np.zeros_like(before)
        nudge[0, place[0], place[1]] = 1e-6
        slope = (q_value(before + nudge) - q_value(before - nudge)) / 2e-6
        assert step[place] == pytest.approx(slope, abs=1e-7)


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize(
    ("algorithm", "settings", "said"),
    [
        ("copdac_q", {"memory": 19}, "two weights for each tiling"),
        ("copdac_q", {"gamma": 1.5}, r"must lie in \[0, 1\]"),
        ("copdac_q", {"advantage_learning_rate": -1.0}, "must not be negative"),
        ("actor_critic", {"trace_lambda": 1.1}, r"must lie in \[0, 1\]"),
        ("actor_critic", {"num_tiles": 0}, "at least 1"),
        ("offpac", {"noise_std": 0.0}, "must be positive"),
        ("offpac", {"behaviour": "lazy"}, "must be one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(algorithm: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_config(algorithm, None, settings)
