"""Other libraries as contestants of `run_bench.py speed --against`, with our hyperparameters, one run on one core."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from bench import UserError


class Outcome(NamedTuple):
    """What a contestant did in one turn."""

    env_steps: int  # of all its runs
    seconds: float
    parts: dict[str, float]  # seconds


Contestant = Callable[[float], Outcome]  # trains for about that many seconds, one iteration at least


def timed(train: Callable[[], int]) -> Contestant:
    """A contestant of `train`, which makes some env steps and returns how many."""

    def turn(seconds: float) -> Outcome:
        steps, begin = 0, time.perf_counter()
        while True:
            steps += train()
            if (spent := time.perf_counter() - begin) >= seconds:
                return Outcome(steps, spent, {})

    return turn


def sb3(algorithm: str, cfg: Any, task: str) -> Contestant:
    """Stable-Baselines3, or its contrib package for what that has."""
    if algorithm not in SB3 | SB3_CONTRIB:
        raise UserError(f"--against sb3 knows {', '.join(SB3 | SB3_CONTRIB)}, not {algorithm}")
    try:
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.vec_env import VecNormalize

        library = importlib.import_module("sb3_contrib" if algorithm in SB3_CONTRIB else "stable_baselines3")
    except ImportError as error:
        cure = "pip install stable-baselines3==2.9.2 sb3-contrib==2.9.2"
        raise UserError(f"--against sb3 needs Stable-Baselines3 ({error}): {cure}") from None
    env: Any = make_vec_env(task, cfg.num_envs, seed=0)
    observations, rewards = getattr(cfg, "normalize_observations", False), getattr(cfg, "scale_rewards", False)
    if observations or rewards:
        env = VecNormalize(env, norm_obs=observations, norm_reward=rewards, gamma=cfg.gamma)
    model, chunk = (SB3 | SB3_CONTRIB)[algorithm](library, cfg, env)
    if hasattr(cfg, "learning_starts"):  # the first steps only fill the buffer
        model.learn(int(cfg.learning_starts) + chunk)

    def train() -> int:
        before = model.num_timesteps
        model.learn(chunk, reset_num_timesteps=False)
        return int(model.num_timesteps - before)

    return timed(train)


def shared(cfg: Any) -> dict[str, Any]:
    """What every model of Stable-Baselines3 takes."""
    return {"gamma": cfg.gamma, "learning_rate": cfg.learning_rate, "device": "cpu"}


def layers(cfg: Any, activation: str) -> dict[str, Any]:
    """The network."""
    import torch

    return {"net_arch": list(cfg.hidden_sizes), "activation_fn": getattr(torch.nn, activation)}


def on_policy(cfg: Any) -> dict[str, Any]:
    """What its on-policy algorithms share."""
    rollouts = {"n_steps": cfg.num_steps, "gae_lambda": cfg.gae_lambda}
    return rollouts | {"policy_kwargs": layers(cfg, "Tanh")} | shared(cfg)


def of_gradient(cfg: Any) -> dict[str, Any]:
    """What those of them share that descend one loss for policy and critic."""
    weights = {name: getattr(cfg, name) for name in ("ent_coef", "vf_coef")}
    return weights | {"max_grad_norm": min(cfg.max_grad_norm, 1e9)} | on_policy(cfg)  # it takes no infinity


def sb3_ppo(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
    """Its PPO, and the env steps of an iteration."""
    model = library.PPO(
        "MlpPolicy",
        env,
        n_epochs=cfg.num_epochs,
        batch_size=cfg.batch_size,
        clip_range=min(cfg.clip_coef, 1e9),
        clip_range_vf=cfg.value_clip if cfg.value_clip < math.inf else None,
        normalize_advantage=bool(cfg.normalize_advantages),
        **of_gradient(cfg),
    )
    return model, cfg.num_envs * cfg.num_steps


def sb3_a2c(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
    """Its A2C, and the env steps of some iterations."""
    model = library.A2C("MlpPolicy", env, use_rms_prop=cfg.optimizer == "rmsprop", **of_gradient(cfg))
    return model, 20 * cfg.num_envs * cfg.num_steps


def sb3_trpo(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
    """Its TRPO, and the env steps of an iteration."""
    model = library.TRPO(
        "MlpPolicy",
        env,
        batch_size=cfg.batch_size,
        n_critic_updates=cfg.num_epochs,
        target_kl=cfg.delta,
        cg_max_steps=cfg.cg_iterations,
        cg_damping=cfg.cg_damping,
        sub_sampling_factor=cfg.fvp_subsample,
        line_search_shrinking_factor=cfg.shrink,
        line_search_max_iter=cfg.line_search_steps,
        normalize_advantage=bool(cfg.normalize_advantages),
        **on_policy(cfg),
    )
    return model, cfg.num_envs * cfg.num_steps


def off_policy(cfg: Any) -> dict[str, Any]:
    """What its off-policy algorithms share."""
    memory = {"buffer_size": cfg.buffer_size, "learning_starts": cfg.learning_starts, "batch_size": cfg.batch_size}
    return memory | {"train_freq": max(cfg.train_period // cfg.num_envs, 1)} | shared(cfg)


def sb3_dqn(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
    """Its DQN, and the env steps of a chunk."""
    period = int(cfg.target_period)
    return library.DQN(
        "MlpPolicy", env, target_update_interval=period, policy_kwargs=layers(cfg, "ReLU"), **off_policy(cfg)
    ), 256


def sb3_actor_critic(name: str) -> Callable[[ModuleType, Any, Any], tuple[Any, int]]:
    """Its DDPG, TD3 or SAC, and the env steps of a chunk."""

    def make(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
        model = getattr(library, name)
        return model("MlpPolicy", env, tau=cfg.tau, policy_kwargs=layers(cfg, "ReLU"), **off_policy(cfg)), 256

    return make


def sb3_tqc(library: ModuleType, cfg: Any, env: Any) -> tuple[Any, int]:
    """Its TQC, and the env steps of a chunk."""
    critics = {"n_critics": cfg.num_critics, "n_quantiles": cfg.num_quantiles}
    sizes = {"pi": list(cfg.hidden_sizes), "qf": list(cfg.critic_hidden_sizes)}
    policy = layers(cfg, "ReLU") | {"net_arch": sizes} | critics
    dropped = {"top_quantiles_to_drop_per_net": cfg.num_dropped}
    return library.TQC("MlpPolicy", env, tau=cfg.tau, policy_kwargs=policy, **dropped, **off_policy(cfg)), 256


SB3: dict[str, Callable[[ModuleType, Any, Any], tuple[Any, int]]] = {
    "ppo": sb3_ppo,
    "a2c": sb3_a2c,
    "dqn": sb3_dqn,
    "ddpg": sb3_actor_critic("DDPG"),
    "td3": sb3_actor_critic("TD3"),
    "sac": sb3_actor_critic("SAC"),
}
SB3_CONTRIB: dict[str, Callable[[ModuleType, Any, Any], tuple[Any, int]]] = {"trpo": sb3_trpo, "tqc": sb3_tqc}


def tianshou(algorithm: str, cfg: Any, task: str) -> Contestant:
    """Tianshou's C51 and Rainbow, with an update every `train_period` steps."""
    if algorithm not in ("c51", "rainbow"):
        raise UserError(f"--against tianshou knows c51 and rainbow, not {algorithm}")
    if cfg.num_envs != 1:
        raise UserError(f"--against tianshou measures one environment; num_envs is {cfg.num_envs}")
    try:
        from tianshou.data import Collector, PrioritizedVectorReplayBuffer, VectorReplayBuffer
        from tianshou.env import DummyVectorEnv
        from tianshou.policy import C51Policy, RainbowPolicy
        from tianshou.utils.net.common import Net
        from tianshou.utils.net.discrete import NoisyLinear
    except ImportError as error:
        cure = "pip install tianshou==1.2.0, in a virtual environment of its own as its dependencies differ from ours"
        raise UserError(f"--against tianshou needs Tianshou ({error}): {cure}") from None
    import gymnasium
    import torch

    env: Any = gymnasium.make(task)
    *body, last = cfg.hidden_sizes
    structure: dict[str, Any] = {"hidden_sizes": [*body, last]}
    buffer: Any = VectorReplayBuffer(cfg.buffer_size, 1)
    if algorithm == "rainbow":
        head = {"hidden_sizes": [last], "linear_layer": lambda inputs, outputs: NoisyLinear(inputs, outputs, 0.5)}
        structure = {"hidden_sizes": body, "dueling_param": (head, head)}
        buffer = PrioritizedVectorReplayBuffer(
            cfg.buffer_size, 1, alpha=cfg.priority_exponent, beta=cfg.importance_exponent
        )
    net = Net(
        state_shape=env.observation_space.shape,
        action_shape=env.action_space.n,
        softmax=True,
        num_atoms=cfg.num_atoms,
        **structure,
    )
    policy: Any = (RainbowPolicy if algorithm == "rainbow" else C51Policy)(
        model=net,
        optim=torch.optim.Adam(net.parameters(), lr=cfg.learning_rate, eps=cfg.adam_epsilon),
        action_space=env.action_space,
        discount_factor=cfg.gamma,
        num_atoms=cfg.num_atoms,
        v_min=cfg.v_min,
        v_max=cfg.v_max,
        estimation_step=getattr(cfg, "n_steps", 1),
        target_update_freq=max(int(cfg.target_period / cfg.train_period), 1),
    )
    collector = Collector(policy, DummyVectorEnv([lambda: gymnasium.make(task)]), buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=max(int(cfg.learning_starts), cfg.batch_size), random=True)
    policy.is_within_training_step = True  # what its trainer sets around an update
    policy.set_eps(cfg.epsilon_end)

    def train() -> int:
        collector.collect(n_step=cfg.train_period)
        policy.update(cfg.batch_size, buffer)
        return int(cfg.train_period)

    return timed(train)


RIVALS: dict[str, Callable[[str, Any, str], Contestant]] = {"sb3": sb3, "tianshou": tianshou}
