"""Policies' distributions over actions. Arguments [R, B, A]; results [R, B], summed over the action's dimensions.

`gradient` is the derivative of sum_b (w_p log pi(a) + w_k KL(old || pi) + w_h H(pi)) in closed form, the weights [R, B]
or numbers held fixed: every policy-gradient loss has this shape, and autograd would spend more time on its thirty
small operations than the networks take. Tested against autograd.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from algorithms.common.layers import tanh_


class Gaussian(NamedTuple):
    """Independent normals: `mean` [R, B, A] and `log_std` [R, 1, A] (or [R, B, A])."""

    mean: Tensor
    log_std: Tensor

    def log_prob(self, actions: Tensor) -> Tensor:
        """log N(a; mean, std^2) = -1/2 ((a - mean) / std)^2 - log std - 1/2 log 2 pi."""
        z = (actions - self.mean) * torch.exp(-self.log_std)
        return (-0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """log std + 1/2 log(2 pi e). Contiguous: a mean over an expanded axis would depend on the number of runs."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1).expand(self.mean.shape[:-1]).contiguous()

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) = log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
        inverse = torch.exp(-2 * other.log_std)
        spread = torch.exp(2 * self.log_std) + (self.mean - other.mean).square()
        return (other.log_std - self.log_std + 0.5 * spread * inverse - 0.5).sum(-1)

    def gradient(
        self,
        actions: Tensor,
        w_p: Tensor,
        old: Gaussian | None = None,
        w_k: Tensor | float = 0.0,
        w_h: Tensor | float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """With respect to the mean [R, B, A] and to log_std [R, 1, A]; without `old` there is no KL term."""
        inverse = torch.exp(-self.log_std)
        z = (actions - self.mean) * inverse
        w_p = w_p.unsqueeze(-1)
        by_mean, by_log_std = w_p * z, w_p * (z.square() - 1)
        if old is not None:
            w_k = torch.as_tensor(w_k).unsqueeze(-1)
            shift = (self.mean - old.mean) * inverse
            by_mean = by_mean + w_k * shift
            by_log_std = by_log_std + w_k * (1 - torch.exp(2 * (old.log_std - self.log_std)) - shift.square())
        total = torch.as_tensor(w_h, dtype=z.dtype, device=z.device).expand(z.shape[:2]).sum(1)[:, None, None]
        return by_mean * inverse, by_log_std.sum(1, keepdim=True) + total

    def fisher(self, mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
        """The Fisher information of the parameters times a direction in them, `mean` [R, B, A] and `log_std` [R, 1, A]:
        mean / std^2 and 2 log_std."""
        return mean * torch.exp(-2 * self.log_std), 2 * log_std


class SquashedGaussian(NamedTuple):
    """a = tanh(u) of independent normals u: `mean` and `log_std` of u [R, B, A] (arXiv:1812.05905, appendix C).

    Samples are given by their standard normal noise, u = mean + exp(log_std) noise [R, B, A].
    """

    mean: Tensor
    log_std: Tensor

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions tanh(u) [R, B, A] and log pi(a) [R, B],

            log pi(a) = log N(u; mean, std^2) - sum log(1 - tanh(u)^2),

        with log(1 - tanh(u)^2) = 2 (log 2 - |u| - log(1 + exp(-2 |u|))), which does not underflow.
        """
        u = self.mean + torch.exp(self.log_std) * noise
        size = u.abs()
        slope = 2 * (math.log(2) - size - torch.log1p(torch.exp(-2 * size)))
        normal = -0.5 * noise.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return tanh_(u), (normal - slope).sum(-1)

    def gradient(self, noise: Tensor, actions: Tensor, by_actions: Tensor, w_p: Tensor) -> tuple[Tensor, Tensor]:
        """The reparameterised derivative of sum_b (<by_actions, a> + w_p log pi(a)) with respect to mean and log_std
        [R, B, A], the noise held fixed; `actions` from `sample`, `by_actions` [R, B, A], `w_p` [R, B] or [R, 1].
        """
        w_p = w_p.unsqueeze(-1)
        by_u = by_actions * (1 - actions.square()) + 2 * w_p * actions
        return by_u, by_u * torch.exp(self.log_std) * noise - w_p


class Categorical:
    """Softmax over `logits` [R, B, A]."""

    def __init__(self, logits: Tensor):
        self.log_probs = torch.log_softmax(logits, -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """log softmax at the actions, int64 [R, B]."""
        return self.log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """-sum p log p."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) = sum p (log p - log q)."""
        return (self.log_probs.exp() * (self.log_probs - other.log_probs)).sum(-1)

    def gradient(
        self,
        actions: Tensor,
        w_p: Tensor,
        old: Categorical | None = None,
        w_k: Tensor | float = 0.0,
        w_h: Tensor | float = 0.0,
    ) -> tuple[Tensor, None]:
        """With respect to the logits [R, B, A]; without `old` there is no KL term."""
        log_probs, probs = self.log_probs, self.log_probs.exp()
        w_p = w_p.unsqueeze(-1)
        entropy = -(probs * log_probs).sum(-1, keepdim=True)
        by_logits = -(torch.as_tensor(w_h).unsqueeze(-1) * (log_probs + entropy) + w_p) * probs
        by_logits.scatter_add_(-1, actions.unsqueeze(-1), w_p)
        if old is not None:
            by_logits = by_logits + torch.as_tensor(w_k).unsqueeze(-1) * (probs - old.log_probs.exp())
        return by_logits, None

    def fisher(self, logits: Tensor, log_std: None = None) -> tuple[Tensor, None]:
        """The Fisher information of the logits times a direction in them, `logits` [R, B, A]: (diag p - p p^T) u."""
        probs = self.log_probs.exp()
        return probs * (logits - (probs * logits).sum(-1, keepdim=True)), None


Distribution = Gaussian | Categorical
