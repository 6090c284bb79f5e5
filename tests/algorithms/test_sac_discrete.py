"""SAC for discrete actions: targets by a literal loop over actions, gradients by autograd in float64, when the target
networks follow, what is explored, and where the temperature leads."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import PROBE, advance, make, settings, small
from probes import ActionToReward
from test_off_policy import assert_gradient, critics64, perceptron, weights64

import algorithms
from algorithms import sac_discrete
from algorithms.common.config import load_config, stack
from algorithms.common.replay import Transitions
from algorithms.common.streams import Streams

T = torch.tensor
BATCH, RUNS, ACTIONS, SEEN = 12, 3, 3, 6  # Acrobot
ALPHA = T([[0.5], [0.2], [3.0]])


def agent_of(**overrides: Any) -> Any:
    """Three runs on Acrobot, target networks apart from the online ones."""
    shared = {"hidden_sizes": (10, 7), "batch_size": BATCH} | overrides
    agent = make("sac_discrete", "Acrobot-v1", [small("sac_discrete", **shared)] * RUNS, range(RUNS))
    rng = np.random.default_rng(5)
    for parameters in (agent.parameters, agent.critics.target):
        parameters.flat.add_(torch.from_numpy(0.3 * rng.standard_normal(parameters.flat.shape, np.float32)))
    return agent


def random_batch() -> Transitions:
    rng = np.random.default_rng(1)
    observations, successors = rng.standard_normal((2, RUNS, BATCH, SEEN), np.float32)
    actions = rng.integers(0, ACTIONS, (RUNS, BATCH, 1)).astype(np.float32)
    rewards = 3 * rng.standard_normal((RUNS, BATCH), np.float32)
    discounts = rng.choice([0.0, 0.9, 0.99], (RUNS, BATCH)).astype(np.float32)
    return Transitions(*(torch.from_numpy(x) for x in (observations, successors, actions, rewards, discounts)))


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("num_critics", [1, 2, 3])
def test_targets_against_a_loop(num_critics: int) -> None:
    """Action by action: its probability times the least critic's value less alpha times its log-probability."""
    agent, batch = agent_of(num_critics=num_critics), random_batch()
    found = agent._targets(batch, ALPHA)
    for run, b in itertools.product(range(RUNS), range(BATCH)):
        successor = batch.next_observations[run, b].double()
        probabilities = softmax(perceptron(weights64(agent.parameters, run), successor).tolist())
        critics = [perceptron(critic, successor).tolist() for critic in critics64(agent, agent.critics.target, run)]
        assert len(critics) == num_critics
        value = 0.0
        for a in range(ACTIONS):
            least = min(critic[a] for critic in critics)
            value += probabilities[a] * (least - float(ALPHA[run]) * math.log(probabilities[a]))
        expected = float(batch.rewards[run, b]) + float(batch.discounts[run, b]) * value
        assert found[run, b].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_values_and_slopes_by_hand() -> None:
    """Probabilities 1/4 and 3/4, Q of 2 and 4, alpha 2; an action without probability counts for nothing."""
    log_probs, q_values = T([[[0.25, 0.75]]]).log(), T([[[2.0, 4.0]]])
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert sac_discrete.soft_values(q_values, log_probs, T([[2.0]])).item() == pytest.approx(3.5 + 2 * entropy)
    slopes = sac_discrete.policy_slopes(q_values, log_probs, T([[2.0]]))[0, 0]
    assert slopes[0].item() == pytest.approx(0.25 * (3.5 + 2 * entropy - 2 - 2 * math.log(4)), abs=1e-6)
    assert slopes.sum().item() == pytest.approx(0, abs=1e-6)
    certain = torch.log_softmax(T([[[0.0, 200.0]]]), 2)
    assert sac_discrete.soft_values(q_values, certain, T([[2.0]])).item() == 4.0
    assert sac_discrete.policy_slopes(q_values, certain, T([[2.0]])).abs().max().item() == 0.0


def test_gradients() -> None:
    """Of the critics through the action taken, of the policy through all actions, of the temperature."""
    agent, batch = agent_of(), random_batch()
    targets = 2 * torch.randn(RUNS, BATCH, generator=torch.Generator().manual_seed(5))
    critics = [critics64(agent, agent.critics.parameters, run) for run in range(RUNS)]
    learned = agent._update_critics(batch, targets)
    for run in range(RUNS):
        for n, critic in enumerate(critics[run]):
            outputs = perceptron(critic, batch.observations[run].double())
            taken = outputs[range(BATCH), batch.actions[run, :, 0].long()]
            loss = 0.5 * (taken - targets[run].double()).square().mean()
            assert learned["critic_loss"][run, n].mean().item() == pytest.approx(loss.item(), rel=1e-4)
            assert_gradient(agent.critics.parameters, run * 2 + n, loss, critic)

    actors = [weights64(agent.parameters, run) for run in range(RUNS)]
    entropy = agent._improve(batch, ALPHA)
    agent.temperature_optimizer.step = lambda *given, **named: None
    agent._update_temperature(-entropy, ALPHA)
    for run, actor in enumerate(actors):
        observations = batch.observations[run].double()
        probabilities = torch.softmax(perceptron(actor, observations), 1)
        worth = [perceptron(critic, observations) for critic in critics64(agent, agent.critics.parameters, run)]
        least = torch.stack(worth).amin(0).detach()
        loss = (probabilities * (float(ALPHA[run]) * probabilities.log() - least)).sum(1).mean()
        assert_gradient(agent.parameters, run, loss, actor)
        log_alpha = ALPHA[run].double().log().requires_grad_()
        probabilities = probabilities.detach()
        assert torch.allclose(entropy[run].double(), -(probabilities * probabilities.log()).sum(1), atol=1e-5)
        goal = 0.98 * math.log(ACTIONS)
        loss = (probabilities * -log_alpha.exp() * (probabilities.log() + goal)).sum(1).mean()
        (expected,) = torch.autograd.grad(loss, log_alpha)
        assert agent.temperature.grads["log_alpha"][run].item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-6)


def test_target_networks_follow_when_their_period_is_over() -> None:
    """Every run at its own, counted in updates of 4 env_steps each: 6 is crossed at 8 and 12."""
    runs = [small("sac_discrete", train_period=4, target_period=x, tau=1.0) for x in (6.0, 12.0, 16.0)]
    agent = make("sac_discrete", "CartPole-v1", runs, [0, 1, 2])
    advance(agent, 48)
    agent.updates, seen = 0, []
    for _ in range(4):
        before = [agent.critics.target["critic.weight0"][2 * run].clone() for run in range(3)]
        agent._learn(np.random.default_rng(0).random((3, 16)))
        after, online = (p["critic.weight0"].detach()[::2] for p in (agent.critics.target, agent.critics.parameters))
        moved = [not torch.equal(before[run], after[run]) for run in range(3)]
        assert all(torch.equal(after[run], online[run]) for run in range(3) if moved[run])
        seen.append(moved)
    assert [[int(one) for one in moved] for moved in seen] == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_actions_are_random_at_first_and_then_the_policys() -> None:
    agent = agent_of(random_steps=10_000)
    explore = agent._first_random(agent._explorer(), np.arange(2, 102, 2))
    actions = np.stack([explore(agent.observations, t) for t in range(50)])
    assert actions.shape == (50, RUNS, 2) and set(actions.ravel().tolist()) == {0, 1, 2}
    observations = np.repeat(agent.observations[:, :1], 3000, 1)
    shares = torch.softmax(torch.from_numpy(agent.actor_outputs(observations[:, :1])), 2)[:, 0]
    drawn = agent.act(observations, Streams([4, 5, 6]))
    for run, a in itertools.product(range(RUNS), range(ACTIONS)):
        assert (drawn[run] == a).mean() == pytest.approx(shares[run, a].item(), abs=5 * 0.5 / math.sqrt(3000))
    assert np.array_equal(agent.act(observations)[:, 0], shares.argmax(1).numpy())


def test_the_temperature_brings_the_entropy_to_its_target() -> None:
    """I12, where one of two actions is better: the entropy becomes the wanted share of log 2."""
    wanted = (0.3, 0.6, 0.9)
    probe = {"tau": 1.0, "alpha": 0.1}
    runs = [
        load_config("sac_discrete", None, settings("sac_discrete", PROBE | probe, target_entropy=x)) for x in wanted
    ]
    agent = algorithms.load("sac_discrete").Agent(stack(runs), ActionToReward(3, 8, True), [0, 1, 2])
    found = []
    while agent.env_steps < 8000:
        found.append(agent.iterate()["entropy"])
    assert np.abs(np.mean(found[-4:], 0) / math.log(2) - wanted).max() < 0.1


def test_images_are_refused() -> None:
    cfg, envs = stack([load_config("sac_discrete", None, small("sac_discrete"))]), ActionToReward(1, 2, True)
    envs.observation_shape = (10, 10, 4)
    with pytest.raises(ValueError, match="rows of numbers"):
        sac_discrete.Agent(cfg, envs, [0])
