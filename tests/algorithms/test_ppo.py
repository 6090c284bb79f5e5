"""PPO against the paper's formulas: by hand, by autograd, and by a second, slow implementation of a whole iteration."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import make
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from algorithms import ppo
from algorithms.common import distributions
from algorithms.common.config import load_config, stack
from algorithms.common.rollouts import Rollout, by_run, evaluate

inf = math.inf
TABLE_1: dict[str, dict[str, float]] = {
    "no-clip": {"clip_coef": inf},
    "clip-0.1": {"clip_coef": 0.1},
    "clip-0.2": {"clip_coef": 0.2},
    "clip-0.3": {"clip_coef": 0.3},
    "adaptive-kl-0.003": {"clip_coef": inf, "kl_coef": 1.0, "kl_target": 0.003},
    "adaptive-kl-0.01": {"clip_coef": inf, "kl_coef": 1.0, "kl_target": 0.01},
    "adaptive-kl-0.03": {"clip_coef": inf, "kl_coef": 1.0, "kl_target": 0.03},
    "fixed-kl-0.3": {"clip_coef": inf, "kl_coef": 0.3},
    "fixed-kl-1": {"clip_coef": inf, "kl_coef": 1.0},
    "fixed-kl-3": {"clip_coef": inf, "kl_coef": 3.0},
    "fixed-kl-10": {"clip_coef": inf, "kl_coef": 10.0},
}
DETAILS: dict[str, dict[str, float]] = {
    "entropy": {"ent_coef": 0.05, "vf_coef": 1.0},
    "value-clip": {"value_clip": 0.05},
    "advantages": {"normalize_advantages": 1.0},
    "grad-norm": {"max_grad_norm": 0.1},
    "discounts": {"gamma": 0.9, "gae_lambda": 0.5},
    "old-time-limits": {"time_limit_bootstrap": 0.0},
    "all": {"ent_coef": 0.01, "value_clip": 0.2, "normalize_advantages": 1.0, "max_grad_norm": 0.5, "kl_coef": 0.5},
}


class Spaces(SimpleNamespace):
    """Environments that only say what they look like."""

    def reset(self, seeds: list[int]) -> np.ndarray:
        return np.zeros((len(seeds), 1, *self.observation_shape), np.float32)


DISCRETE = Spaces(observation_shape=(5,), num_actions=3, action_shape=None)
CONTINUOUS = Spaces(
    observation_shape=(5,),
    num_actions=None,
    action_shape=(2,),
    action_low=np.full(2, -1, np.float32),
    action_high=np.ones(2, np.float32),
)


def build(spaces: Spaces, runs: list[dict[str, Any]], **structure: Any) -> ppo.Agent:
    cfg = stack([load_config("ppo", None, run | structure) for run in runs])
    return ppo.Agent(cfg, spaces, list(range(len(runs))))


# ------------------------------------------------------------------------------------------------------ the objectives
EPS = 0.2
GRID = [(r, a) for r in (0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 3.0) for a in (-2.0, -0.5, 0.5, 2.0)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value"),
    [
        (1.5, 2.0, 2.4), (0.5, 2.0, 1.0), (1.1, 2.0, 2.2), (1.5, -2.0, -3.0), (0.5, -2.0, -1.6), (0.9, -2.0, -1.8),
        (1.0, 3.0, 3.0), (7.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, value: float) -> None:
    args = torch.tensor([[ratio]], dtype=torch.float64), torch.tensor([[advantage]], dtype=torch.float64)
    assert ppo.surrogate(*args, torch.tensor([[EPS]], dtype=torch.float64)).item() == pytest.approx(value, abs=1e-12)
    assert ppo.surrogate(*args, torch.tensor([[inf]], dtype=torch.float64)).item() == pytest.approx(ratio * advantage)


@pytest.mark.parametrize("clip_coef", [0.1, EPS, 0.3, inf])
def test_slope_is_the_derivative_and_has_the_dead_zones(clip_coef: float) -> None:
    """I7: no gradient above 1 + eps for a positive advantage, none below 1 - eps for a negative one; else r A."""
    log_ratio = torch.tensor([[math.log(r) for r, _ in GRID]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[a for _, a in GRID]], dtype=torch.float64)
    bound = torch.tensor([[clip_coef]], dtype=torch.float64)
    objective = ppo.surrogate(log_ratio.exp(), advantages, bound)
    (by_autograd,) = torch.autograd.grad(objective.sum(), log_ratio)
    slope = ppo.surrogate_slope(log_ratio.detach().exp(), advantages, bound)
    assert torch.allclose(slope, by_autograd, rtol=1e-12, atol=0)
    for (ratio, advantage), value in zip(GRID, slope[0].tolist(), strict=True):
        dead = (advantage > 0 and ratio > 1 + clip_coef) or (advantage < 0 and ratio < 1 - clip_coef)
        assert value == (0.0 if dead else pytest.approx(ratio * advantage, rel=1e-12))


def test_rows_of_a_group_keep_their_own_clip() -> None:
    ratio, advantages = torch.full((4, 1), 1.25), torch.ones(4, 1)
    bound = torch.tensor([[0.1], [0.2], [0.3], [inf]])
    assert ppo.surrogate(ratio, advantages, bound).squeeze(1).tolist() == pytest.approx([1.1, 1.2, 1.25, 1.25])
    assert ppo.surrogate_slope(ratio, advantages, bound).squeeze(1).tolist() == [0, 0, 1.25, 1.25]


def test_surrogate_has_the_gradient_of_log_prob_at_the_old_policy() -> None:
    """I2, in float64: grad E[min(r A, clip(r) A)] = grad E[log pi A] where pi = pi_old, whatever eps."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 50, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    mean = torch.randn(2, 50, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    log_std = torch.randn(2, 1, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(2, 50, generator=rng, dtype=torch.float64)
    policies: list[tuple[Any, Tensor, list[Tensor]]] = [
        (distributions.Categorical(logits), torch.randint(4, (2, 50), generator=rng), [logits]),
        (distributions.Gaussian(mean, log_std), torch.randn(2, 50, 3, generator=rng).double(), [mean, log_std]),
    ]
    for policy, actions, weights in policies:
        log_probs = policy.log_prob(actions)
        score = torch.autograd.grad((log_probs * advantages).mean(), weights, retain_graph=True)
        for clip_coef in (0.01, 0.2, inf):
            ratio = torch.exp(log_probs - log_probs.detach())
            objective = ppo.surrogate(ratio, advantages, torch.full((2, 1), clip_coef, dtype=torch.float64))
            gradient = torch.autograd.grad(objective.mean(), weights, retain_graph=True)
            for one, other in zip(gradient, score, strict=True):
                assert torch.allclose(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "slope"),
    [
        (1.0, 0.0, 3.0, inf, 2.0, -2.0),
        (0.1, 0.0, 3.0, 0.2, 4.205, -2.9),  # within the range: the plain error
        (1.0, 0.0, 3.0, 0.2, 3.92, 0.0),  # left it towards the return: pays for the clipped value, no slope
        (-1.0, 0.0, 3.0, 0.2, 8.0, -4.0),  # left it the wrong way: the plain error is the larger one
        (4.0, 0.0, 1.0, 0.2, 4.5, 3.0),  # shot over the return by more than the clipped value lacks
    ],
)
def test_value_loss_by_hand(value: float, old: float, target: float, clip: float, loss: float, slope: float) -> None:
    args = [torch.tensor([[x]], dtype=torch.float64) for x in (value, old, target, clip)]
    assert ppo.value_loss(*args).item() == pytest.approx(loss)
    assert ppo.value_slope(*args).item() == pytest.approx(slope)


@pytest.mark.parametrize("clip", [0.05, 0.5, inf])
def test_value_slope_is_the_derivative(clip: float) -> None:
    rng = torch.Generator().manual_seed(1)
    values, old, returns = torch.randn(3, 4, 200, generator=rng, dtype=torch.float64)
    values.requires_grad_()
    bound = torch.full((4, 1), clip, dtype=torch.float64)
    (by_autograd,) = torch.autograd.grad(ppo.value_loss(values, old, returns, bound).sum(), values)
    assert torch.allclose(ppo.value_slope(values.detach(), old, returns, bound), by_autograd, rtol=1e-12, atol=1e-15)


def test_standardize() -> None:
    advantages = torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(2)) * 7 + 3
    active = torch.tensor([[1.0], [0.0], [1.0]])
    scaled = ppo.standardize(advantages, active)
    assert torch.equal(scaled[:, 1], advantages[:, 1])
    for run in (0, 2):
        assert torch.allclose(scaled[:, run].mean(-1), torch.zeros(5), atol=1e-6)
        assert torch.allclose(scaled[:, run].std(-1), torch.ones(5), atol=1e-5)


@pytest.mark.parametrize("target", [0.003, 0.01, 0.03])
def test_adaptive_penalty_by_hand(target: float) -> None:
    """Section 4: halved below d_targ / 1.5, doubled above 1.5 d_targ, else kept; and kept where it does not adapt."""
    kl = np.array([0.0, 0.6, 0.66, 0.67, 1.0, 1.49, 1.51, 40.0]) * target
    after = ppo.adapt_kl_coef(np.full(8, 0.8), kl, np.full(8, target))
    assert after.tolist() == [0.4, 0.4, 0.4, 0.8, 0.8, 0.8, 1.6, 1.6]
    assert ppo.adapt_kl_coef(np.full(8, 3.0), kl, np.zeros(8)).tolist() == [3.0] * 8
    assert ppo.adapt_kl_coef(np.ones(2), np.array([np.nan, 1.0]), np.array([0.01, 0.0])).tolist() == [1.0, 1.0]


def test_adaptive_penalty_follows_the_whole_update() -> None:
    """beta is judged once per iteration, by the KL of the old and the new policy over the whole rollout."""
    runs = [TABLE_1["adaptive-kl-0.003"], TABLE_1["adaptive-kl-0.03"], TABLE_1["fixed-kl-3"], TABLE_1["clip-0.2"]]
    small = {"num_steps": 64, "batch_size": 32, "num_epochs": 3, "learning_rate": 3e-3}
    agent = make("ppo", "Pendulum-v1", [run | small for run in runs], [0, 1, 2, 3])
    for _ in range(4):
        before = agent.kl_coef.copy()
        rollout = {}
        collect = agent._collect
        agent._collect = lambda collect=collect, rollout=rollout: rollout.setdefault("entries", collect())
        weights = [agent.parameters_of(run) for run in range(4)]
        kl = agent.iterate()["kl"]
        agent._collect = collect
        for run in range(4):
            observations = torch.from_numpy(rollout["entries"][0][:, run].reshape(64, -1))
            old, new = (literal_policy(w)(observations) for w in (weights[run], agent.parameters_of(run)))
            assert kl[run] == pytest.approx(kl_divergence(old, new).mean().item(), rel=1e-3, abs=1e-6)
        targets = np.array([run.get("kl_target", 0.0) for run in runs])
        assert np.array_equal(agent.kl_coef, ppo.adapt_kl_coef(before, kl, targets))
    assert agent.kl_coef[2:].tolist() == [3.0, 0.0]
    assert agent.kl_coef[0] != 1.0


# --------------------------------------------------------------------------------------------------------- gradients
def batch_for(agent: ppo.Agent, seed: int = 0) -> tuple[ppo.Batch, Tensor | None]:
    """Samples [R, B] whose old policy is another one than the present: ratios lie on both sides of every clip."""
    runs, size = agent.num_runs, agent.cfg.batch_size
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(runs, *shape, generator=rng)

    observations = normal(size, 5)
    outputs = evaluate(agent.policy.network, agent.parameters, observations)
    old = outputs + 0.3 * normal(*outputs.shape[1:])
    old_log_std = None if agent.policy.discrete else agent.parameters["log_std"].detach() + 0.2 * normal(1, 2)
    actions = torch.randint(3, (runs, size), generator=rng) if agent.policy.discrete else old + normal(size, 2)
    old_log_probs = agent.policy.distribution(old, old_log_std).log_prob(actions)
    return ppo.Batch(observations, actions, old, old_log_probs, normal(size), normal(size), normal(size)), old_log_std


def literal_loss(
    setting: dict[str, float], policy: Any, old: Any, actions: Tensor, advantages: Tensor,
    values: Tensor, old_values: Tensor, returns: Tensor, old_log_probs: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Minus equation 9, with equation 7 and the penalty of equation 8, as they are written; one run, samples [B]."""
    defaults = {"clip_coef": 0.2, "kl_coef": 0.0, "ent_coef": 0.0, "vf_coef": 0.5, "value_clip": inf}
    s = defaults | setting
    if old_log_probs is None:
        old_log_probs = old.log_prob(actions)
    ratio = policy.log_prob(actions).exp() / old_log_probs.exp()
    if math.isinf(s["clip_coef"]):
        objective = ratio * advantages
    else:
        objective = torch.min(ratio * advantages, ratio.clip(1 - s["clip_coef"], 1 + s["clip_coef"]) * advantages)
    if s["kl_coef"] > 0:
        objective = objective - s["kl_coef"] * kl_divergence(old, policy)
    errors = (values - returns) ** 2
    if math.isfinite(s["value_clip"]):
        clipped = old_values + (values - old_values).clip(-s["value_clip"], s["value_clip"])
        errors = torch.max(errors, (clipped - returns) ** 2)
    return (-objective - s["ent_coef"] * policy.entropy() + s["vf_coef"] * 0.5 * errors).mean()


@pytest.mark.parametrize("spaces", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_gradient_is_that_of_the_literal_loss(spaces: Spaces) -> None:
    """Equations 7 to 9 through float64 autograd: the eleven rows and other per-run coefficients in one group."""
    settings = list(TABLE_1.values()) + [DETAILS[name] for name in ("entropy", "value-clip")]
    settings[0] = settings[0] | {"target_kl": 10.0}  # a group that may stop early is told its KL
    agent = build(spaces, settings, num_steps=128, batch_size=128, hidden_sizes=[16, 16])
    rng = np.random.default_rng(3)
    for name, shape in agent.parameters.shapes.items():  # heads that are not almost zero
        agent.parameters.fill(name, rng.standard_normal((len(settings), *shape)) / 3)
    batch, old_log_std = batch_for(agent)
    approx_kl = agent._gradient(batch, old_log_std)
    for run, setting in enumerate(settings):
        weights = {name: torch.from_numpy(w).double() for name, w in agent.parameters.of_run(run).items()}
        for weight in weights.values():
            weight.requires_grad_()
        (observations, actions, old, _, old_values, advantages, returns) = [
            field[run].double() if field.is_floating_point() else field[run] for field in batch
        ]
        policy = distribution(forward(weights, "actor", observations), weights.get("log_std"))
        before = distribution(old, None if old_log_std is None else old_log_std[run].double())
        values = forward(weights, "critic", observations).squeeze(-1)
        loss = literal_loss(setting, policy, before, actions, advantages, values, old_values, returns)
        for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            ours = agent.parameters.grads[name][run].double()
            scale = gradient.abs().max()
            assert torch.allclose(ours, gradient, rtol=1e-4, atol=1e-5 * scale.item()), (run, setting, name)
        log_ratio = policy.log_prob(actions) - before.log_prob(actions)
        assert approx_kl[run].item() == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-4)


def forward(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    for layer in range(2):
        x = torch.tanh(x @ weights[f"{name}.weight{layer}"] + weights[f"{name}.bias{layer}"])
    return x @ weights[f"{name}.weight2"] + weights[f"{name}.bias2"]


def distribution(outputs: Tensor, log_std: Tensor | None) -> Any:
    if log_std is None:
        return Categorical(logits=outputs)
    return Independent(Normal(outputs, log_std.exp().expand_as(outputs)), 1)


def literal_policy(weights: dict[str, np.ndarray]) -> Any:
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    return lambda observations: distribution(forward(tensors, "actor", observations), tensors.get("log_std"))


# --------------------------------------------------------------------------------- one whole iteration, a second time
class Literal(nn.Module):
    """One run of PPO with torch's modules and optimizer."""

    def __init__(self, weights: dict[str, np.ndarray]):
        super().__init__()

        def net(name: str) -> nn.Sequential:
            layers: list[nn.Module] = []
            for k in range(3):
                weight, bias = weights[f"{name}.weight{k}"], weights[f"{name}.bias{k}"]
                linear = nn.Linear(*weight.shape)
                linear.weight.data = torch.from_numpy(weight.T.copy())
                linear.bias.data = torch.from_numpy(bias[0].copy())
                layers += [linear, nn.Tanh()]
            return nn.Sequential(*layers[:-1])

        self.actor, self.critic = net("actor"), net("critic")
        self.log_std = nn.Parameter(torch.from_numpy(weights["log_std"][0].copy())) if "log_std" in weights else None

    def policy(self, observations: Tensor) -> Any:
        return distribution(self.actor(observations), self.log_std)

    def weights(self) -> dict[str, Tensor]:
        named = {}
        for name, net in (("actor", self.actor), ("critic", self.critic)):
            for k in range(3):
                named |= {f"{name}.weight{k}": net[2 * k].weight.T, f"{name}.bias{k}": net[2 * k].bias[None]}
        return named if self.log_std is None else named | {"log_std": self.log_std[None]}


def literal_iteration(
    model: Literal,
    optimizer: torch.optim.Adam,
    setting: dict[str, float],
    rollout: list[np.ndarray],
    orders: list[np.ndarray],
    size: int,
) -> None:
    """Algorithm 1's inner part for one run; rollout entries [T, N, ...], one order of the T * N samples per epoch."""
    observations, actions, rewards, successors = (torch.from_numpy(x) for x in rollout[:4])
    terminations, truncations = rollout[4:]
    gamma, decay = setting.get("gamma", 0.99), setting.get("gae_lambda", 0.95)
    steps, envs = rewards.shape
    if setting.get("time_limit_bootstrap", 1.0) == 0.0:
        terminations = terminations | truncations
    with torch.no_grad():
        values, next_values = model.critic(observations).squeeze(-1), model.critic(successors).squeeze(-1)
        old = distribution(model.actor(observations), None if model.log_std is None else model.log_std.clone())
        old_log_probs = old.log_prob(actions)
    r, v, w = rewards.tolist(), values.tolist(), next_values.tolist()
    sums = np.zeros((steps, envs))
    for t, n in np.ndindex(steps, envs):  # equation 11, summed forwards from every step to the end of its episode
        for k in range(t, steps):
            worth = 0.0 if terminations[k, n] else w[k][n]
            sums[t, n] += (gamma * decay) ** (k - t) * (r[k][n] + gamma * worth - v[k][n])
            if terminations[k, n] or truncations[k, n]:
                break
    advantages = torch.from_numpy(sums.astype(np.float32))
    returns = advantages + values
    outputs = model.actor(observations).detach()
    old_log_std = None if model.log_std is None else model.log_std.detach().clone()
    for order in orders:
        for rows in order.reshape(-1, size):
            t, n = np.unravel_index(rows, (steps, envs))
            advantage = advantages[t, n]
            if setting.get("normalize_advantages"):
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            policy, value = model.policy(observations[t, n]), model.critic(observations[t, n]).squeeze(-1)
            before = distribution(outputs[t, n], old_log_std)
            loss = literal_loss(
                setting,
                policy,
                before,
                actions[t, n],
                advantage,
                value,
                values[t, n],
                returns[t, n],
                old_log_probs[t, n],
            )
            optimizer.zero_grad()
            loss.backward()
            if "max_grad_norm" in setting:
                nn.utils.clip_grad_norm_(model.parameters(), setting["max_grad_norm"])
            optimizer.step()


@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_whole_iterations_against_a_second_implementation(task: str) -> None:
    """From the same weights, rollouts and minibatches, two iterations end with the same weights to 1e-5."""
    settings = list(TABLE_1.values()) + list(DETAILS.values())
    sizes = {"num_steps": 32, "num_envs": 2, "batch_size": 16, "num_epochs": 3, "hidden_sizes": [16, 16]}
    agent = make("ppo", task, [setting | sizes for setting in settings], [3 + run for run in range(len(settings))])
    models = [Literal(agent.parameters_of(run)) for run in range(len(settings))]
    optimizers = [torch.optim.Adam(model.parameters(), lr=3e-4, eps=1e-8) for model in models]
    collect, permutation = agent._collect, agent.streams.permutation
    rollout: list[np.ndarray] = []
    orders: list[np.ndarray] = []

    def recorded() -> Rollout:
        entries = list(collect())  # with more ends of episodes than so short a rollout has
        rng = np.random.default_rng(0)
        entries[4] = entries[4] | (rng.random(entries[4].shape) < 0.05)  # terminations
        entries[5] = entries[5] | (rng.random(entries[5].shape) < 0.05)  # truncations
        rollout[:] = entries
        return Rollout(*entries)

    def drawn(purpose: str, size: int) -> np.ndarray:
        orders.append(permutation(purpose, size))
        return orders[-1]

    agent._collect, agent.streams.permutation = recorded, drawn
    moved = 0.0
    for _ in range(2):
        orders.clear()
        coefs = agent.kl_coef.copy()
        before = [agent.parameters_of(run) for run in range(len(settings))]
        agent.iterate()
        assert len(orders) == 3
        for run, (model, setting) in enumerate(zip(models, settings, strict=True)):
            entries = [entry[:, run] for entry in rollout]
            present = setting | {"kl_coef": float(coefs[run])}
            literal_iteration(model, optimizers[run], present, entries, [order[run] for order in orders], 16)
            for name, ours in agent.parameters_of(run).items():
                theirs = model.weights()[name].detach().numpy()
                assert np.abs(ours - theirs).max() < 1e-5, (run, setting, name)
                moved = max(moved, float(np.abs(ours - before[run][name]).max()))
    assert moved > 1e-3


# ------------------------------------------------------------------------------------------------ the rest of iterate
def test_time_limits_bootstrap_or_not() -> None:
    """A hand-made rollout of one environment: cut at step 0, ended at step 2, going on at steps 1 and 3."""
    runs = [{"time_limit_bootstrap": bootstrap, "gamma": 0.9, "gae_lambda": 0.5} for bootstrap in (1.0, 0.0)]
    agent = build(DISCRETE, runs, num_steps=4, batch_size=4)
    rng = np.random.default_rng(0)
    observations, successors = rng.standard_normal((2, 4, 2, 1, 5)).astype(np.float32)
    observations[:, 1], successors[:, 1] = observations[:, 0], successors[:, 0]
    agent.parameters.flat.copy_(torch.randn(len(agent.parameters.flat), generator=torch.Generator().manual_seed(0)) / 3)
    rewards = np.tile(np.array([1.0, 2.0, 3.0, 4.0], np.float32)[:, None, None], (1, 2, 1))
    terminations, truncations = np.zeros((4, 2, 1), bool), np.zeros((4, 2, 1), bool)
    truncations[0], terminations[2] = True, True
    actions = np.zeros((4, 2, 1), np.int64)
    batch = agent._prepare(Rollout(observations, actions, rewards, successors, terminations, truncations))
    for run, bootstrap in enumerate((True, False)):
        weights = {name: torch.from_numpy(value) for name, value in agent.parameters_of(run).items()}
        v = forward(weights, "critic", torch.from_numpy(observations[:, run, 0])).squeeze(-1).tolist()
        w = forward(weights, "critic", torch.from_numpy(successors[:, run, 0])).squeeze(-1).tolist()
        a0 = 1 + (0.9 * w[0] if bootstrap else 0.0) - v[0]
        a2 = 3 - v[2]
        a1 = 2 + 0.9 * w[1] - v[1] + 0.45 * a2
        a3 = 4 + 0.9 * w[3] - v[3]
        assert batch.advantages[run].tolist() == pytest.approx([a0, a1, a2, a3], rel=1e-5)
        assert batch.old_values[run].tolist() == pytest.approx(v, rel=1e-5)
        assert batch.returns[run].tolist() == pytest.approx([a0 + v[0], a1 + v[1], a2 + v[2], a3 + v[3]], rel=1e-5)
    assert batch.advantages[0, 0] != batch.advantages[1, 0]


def test_step_size_falls_by_env_steps() -> None:
    """Linear in env_steps at the iteration's beginning, 0 from `anneal_steps` on, also between two iterations."""
    runs = [{"learning_rate": 1e-3, "anneal_steps": steps} for steps in (inf, 80.0, 64.0, 16.0)]
    sizes = {"num_steps": 16, "num_envs": 2, "batch_size": 32, "num_epochs": 1, "hidden_sizes": [8]}
    agent = make("ppo", "CartPole-v1", [run | sizes for run in runs], [0, 1, 2, 3])
    seen = []
    step = agent.optimizer.step
    agent.optimizer.step = lambda rate, *rest: (seen.append(rate), step(rate, *rest))
    before = None
    for _ in range(5):
        before = agent.parameters_of(1), agent.parameters_of(0)
        agent.iterate()
    expected = [[1, 1, 1, 1, 1], [1, 0.6, 0.2, 0, 0], [1, 0.5, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert np.allclose(np.array(seen).T, 1e-3 * np.array(expected), rtol=1e-12, atol=0)
    assert all(np.array_equal(before[0][name], value) for name, value in agent.parameters_of(1).items())
    assert not np.array_equal(before[1]["actor.weight0"], agent.parameters_of(0)["actor.weight0"])


def test_target_kl_stops_one_run_and_no_other() -> None:
    """After the epoch in which a run passes its target, its weights, moments and step count stay; the others go on."""
    sizes = {"num_steps": 32, "num_envs": 2, "batch_size": 16, "num_epochs": 4, "hidden_sizes": [16]}
    sizes["learning_rate"] = 3e-3
    stops = [{"target_kl": inf}, {"target_kl": 1e-9}, {"target_kl": 1e9}]

    def after(targets: list[dict[str, float]], **more: Any) -> Any:
        agent = make("ppo", "Pendulum-v1", [sizes | target | more for target in targets], [7, 8, 9])
        agent.iterate()
        return agent

    stopped, free, short = after(stops), after([{}] * 3), after([{}] * 3, num_epochs=1)
    assert stopped.optimizer.steps.tolist() == [16, 4, 16]
    for run, other in ((0, free), (1, short), (2, free)):
        for one, two in (
            (stopped.parameters.flat, other.parameters.flat),
            (stopped.optimizer.first_moment, other.optimizer.first_moment),
            (stopped.optimizer.second_moment, other.optimizer.second_moment),
        ):
            views = stopped.parameters.split(one), other.parameters.split(two)
            assert all(torch.equal(views[0][name][run], views[1][name][run]) for name in views[0])


@pytest.mark.parametrize("targets", [(1e-9, 1e-9), (1e-9, inf)])
def test_a_stopped_run_draws_as_many_numbers_as_another(targets: tuple[float, float]) -> None:
    """Whether all runs have stopped or only one, the next iteration's minibatches are the same."""
    sizes = {"num_steps": 32, "batch_size": 16, "num_epochs": 4, "hidden_sizes": [16], "learning_rate": 3e-3}
    agent = make("ppo", "Pendulum-v1", [sizes | {"target_kl": target} for target in targets], [7, 8])
    alone = make("ppo", "Pendulum-v1", [sizes | {"target_kl": targets[0]}], [7])
    for _ in range(3):
        agent.iterate(), alone.iterate()
        company = agent.parameters_of(0)
        assert all(np.array_equal(value, company[name]) for name, value in alone.parameters_of(0).items())


def test_actions_follow_the_policy() -> None:
    """What the rollout draws has the distribution that log-probabilities are taken from, both kinds of actions."""
    agent = make("ppo", "CartPole-v1", [{"num_steps": 2048, "num_envs": 4}] * 2, [0, 1])
    agent.parameters.fill("actor.bias2", np.tile(np.array([[[0.0, 1.0]]]), (2, 1, 1)))
    observations, actions, *_ = agent._collect()
    probs = torch.softmax(evaluate(agent.policy.network, agent.parameters, by_run(observations)), -1)[..., 1]
    taken = by_run(actions).double()
    error = (taken - probs).mean(1) / (probs * (1 - probs)).mean(1).sqrt() * math.sqrt(8192)
    assert error.abs().max() < 4  # standard errors

    agent = make("ppo", "Pendulum-v1", [{"num_steps": 2048, "num_envs": 4}] * 2, [0, 1])
    agent.parameters.fill("log_std", np.log([[[0.5]], [[2.0]]]))
    observations, actions, *_ = agent._collect()
    mean = evaluate(agent.policy.network, agent.parameters, by_run(observations))
    z = ((by_run(actions) - mean) / torch.tensor([0.5, 2.0]).view(2, 1, 1)).double()
    assert z.mean((1, 2)).abs().max() < 4 / math.sqrt(8192)
    assert (z.square().mean((1, 2)) - 1).abs().max() < 4 * math.sqrt(2 / 8192)


def test_only_runs_that_ask_for_it_clip_actions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environments get the clipped action, the batch keeps the one that was drawn."""
    runs = [{"clip_actions": clips, "num_steps": 64, "batch_size": 16} for clips in (0.0, 1.0)]
    agent = make("ppo", "Hopper-v5", runs, [7, 7])
    given: list[np.ndarray] = []
    step = agent.envs.step
    monkeypatch.setattr(agent.envs, "step", lambda actions: given.append(actions) or step(actions))
    drawn = agent._collect().actions[0]  # the first step: afterwards the two runs see different things
    assert np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(given[0][0], drawn[0])
    assert np.array_equal(given[0][1], drawn[1].clip(-1, 1))
    received = np.array(given)
    assert np.abs(received[:, 0]).max() > 1 >= np.abs(received[:, 1]).max()
    far = np.full((2, 1, 11), 5, np.float32)
    agent.parameters["actor.bias2"].detach()[:] = 3
    assert np.abs(agent.act(far)[0]).min() > 1
    assert np.abs(agent.act(far)[1]).max() <= 1


def test_act_is_the_mode_or_a_sample() -> None:
    from algorithms.common.streams import Streams

    for spaces in (DISCRETE, CONTINUOUS):
        agent = build(spaces, [{}, {}])
        observations = np.random.default_rng(0).standard_normal((2, 400, 5)).astype(np.float32)
        mode, sample = agent.act(observations), agent.act(observations, Streams([5, 6]))
        outputs = evaluate(agent.policy.network, agent.parameters, torch.from_numpy(observations)).numpy()
        expected = outputs.argmax(-1) if agent.policy.discrete else outputs
        assert np.allclose(mode, expected, atol=1e-5)
        assert mode.shape == sample.shape and mode.dtype == sample.dtype and not np.array_equal(mode, sample)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"batch_size": 60}, "batch_size"),
        ({"clip_coef": 0.0}, "clip_coef"),
        ({"gamma": 1.5}, "gamma"),
        ({"num_steps": 0}, "num_steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"gae_lambda": -0.1}, "gae_lambda"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        load_config("ppo", None, values)


def test_table_1_as_shipped() -> None:
    """The experiment's variants are this file's rows, which are the paper's."""
    import tomllib
    from pathlib import Path

    folder = Path(ppo.__file__).parent.parent / "suites" / "experiments"
    (entry,) = tomllib.loads((folder / "ppo_table1.toml").read_text())["algorithms"]
    assert entry["variants"] == TABLE_1
