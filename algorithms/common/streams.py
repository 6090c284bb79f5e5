"""Random numbers: a run draws only from its own seed, one generator per purpose."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def generator(seed: int, purpose: str, index: int | None = None) -> np.random.Generator:
    """The generator of one (seed, purpose), or of one of several with the same purpose."""
    entropy = [seed, zlib.crc32(purpose.encode())] + ([] if index is None else [index])
    return np.random.default_rng(np.random.SeedSequence(entropy))


class Streams:
    """Generators of R runs, made when a purpose is first used. Draws are NumPy's on every device.

    With an `index` they are those of one of several workers, which share no draws.
    """

    def __init__(self, seeds: Sequence[int], index: int | None = None):
        self.seeds, self.index = [int(seed) for seed in seeds], index
        self._generators: dict[str, list[np.random.Generator]] = {}

    def __getitem__(self, purpose: str) -> list[np.random.Generator]:
        """The R generators of one purpose."""
        if purpose not in self._generators:
            self._generators[purpose] = [generator(seed, purpose, self.index) for seed in self.seeds]
        return self._generators[purpose]

    def draw(self, purpose: str, one: Callable[[np.random.Generator], np.ndarray], axis: int = 0) -> np.ndarray:
        """`one(generator)` for each run, stacked along `axis`."""
        return np.stack([one(rng) for rng in self[purpose]], axis)

    def normal(self, purpose: str, shape: tuple[int, ...], axis: int = 0) -> np.ndarray:
        """Standard normal float32 numbers, `shape` per run."""
        return self.draw(purpose, lambda rng: rng.standard_normal(shape, np.float32), axis)

    def uniform(self, purpose: str, shape: tuple[int, ...], axis: int = 0) -> np.ndarray:
        """Uniform float32 numbers in [0, 1), `shape` per run."""
        return self.draw(purpose, lambda rng: rng.random(shape, np.float32), axis)

    def gumbel(self, purpose: str, shape: tuple[int, ...], axis: int = 0) -> np.ndarray:
        """Gumbel noise: argmax(logits + noise) is a sample of softmax(logits)."""
        return -np.log(-np.log(np.maximum(self.uniform(purpose, shape, axis), np.float32(1e-20))))

    def permutation(self, purpose: str, size: int) -> np.ndarray:
        """A permutation of 0..size-1 per run, int64 [R, size]."""
        return self.draw(purpose, lambda rng: rng.permutation(size))

    def state(self) -> dict[str, Any]:
        """State of every generator in use."""
        return {purpose: [rng.bit_generator.state for rng in rngs] for purpose, rngs in self._generators.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state()` was taken."""
        self._generators = {}
        for purpose, states in state.items():
            for rng, one in zip(self[purpose], states, strict=True):
                rng.bit_generator.state = one
