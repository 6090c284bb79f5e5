"""Distributions of returns on fixed atoms (arXiv:1707.06887): what C51 and D4PG share, with the atoms on axis 1."""

from __future__ import annotations

import torch
from torch import Tensor


def project(probabilities: Tensor, rewards: Tensor, discounts: Tensor, atoms: Tensor) -> Tensor:
    """Algorithm 1's m: the distribution of r + d z for z ~ p [r, Z, B], on the atoms [Z]; rewards, discounts [r, B]."""
    last = len(atoms) - 1
    spacing = (atoms[-1] - atoms[0]) / last
    moved = rewards.unsqueeze(1) + discounts.unsqueeze(1) * atoms[:, None]
    position = moved.clamp_(atoms[0], atoms[-1]).sub_(atoms[0]).div_(spacing).clamp_(0, last)  # in atoms, 0..Z - 1
    lower = position.floor().clamp_(max=last - 1)
    share = position.sub_(lower).mul_(probabilities)  # goes to the upper neighbour
    index = lower.long()
    result = torch.zeros_like(probabilities)
    return result.scatter_add_(1, index, probabilities - share).scatter_add_(1, index.add_(1), share)


def divergence(targets: Tensor, logits: Tensor) -> Tensor:
    """KL(m || softmax(logits)) over atoms: [r, Z, B] each -> [r, B]; 0 log 0 = 0."""
    log_ratios = targets.clamp(min=torch.finfo(targets.dtype).tiny).log_().sub_(torch.log_softmax(logits, 1))
    return log_ratios.mul_(targets).sum(1)
