"""Tile coding: Sutton & Barto 2018, section 9.5.4; features of linear function approximation.

K grids (tilings) lie over the observations, each displaced by another share of a tile. A point lies in one tile of
each, and its features x are 1 for those K tiles and for one that is always active, and 0 else: K + 1 indices tell x.

A bounded observation has `num_tiles` tiles over its range, and one more for the displacement; whatever lies outside
counts as lying on the edge. Where a bound is missing, tiles are 1 wide. If all numbers are bounded and the grids have
no more than `memory` tiles, every tile has a weight of its own. Else the tiles of a grid share its part of `memory`
weights by hashing; no two tilings share one, so that the K + 1 indices always differ.

Axes: R runs, N environments, O observed numbers, K tilings; indices [R, N, K + 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

FARTHEST = 2.0**31  # tiles from the origin; what lies beyond counts as lying there
# The multiplier and the last step of 64-bit FNV-1a and MurmurHash3 (aappleby/smhasher, MurmurHash3.cpp, fmix64).
PRIME, FIRST_MIX, SECOND_MIX = np.uint64(0x100000001B3), np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
SHIFT = np.uint64(33)


class TileCoder:
    """Indices of the active features of observations; `low` and `high` [O] bound them (infinite: no bound)."""

    def __init__(self, low: Floats, high: Floats, num_tilings: int, num_tiles: int, memory: int):
        bounded = np.isfinite(low) & np.isfinite(high)
        self._low = np.where(bounded, low, 0.0)
        self._scale = np.where(bounded, num_tiles / np.where(bounded, high - low, 1.0), 1.0)  # tiles per unit
        self._least = np.where(bounded, 0.0, -FARTHEST)
        self._most = np.where(bounded, float(num_tiles), FARTHEST)
        tilings, place = np.arange(num_tilings)[:, None], np.arange(len(low))
        # Displacements (1, 3, 5, ...) / K of a tile, as Miller and Glanz recommend (Sutton & Barto, section 9.5.4).
        self._offsets = (tilings * (2 * place + 1) % num_tilings) / num_tilings  # [K, O]
        cells = (num_tiles + 1) ** len(low)  # of one grid
        self.hashed = not bounded.all() or num_tilings * cells > memory
        self._size = memory // num_tilings if self.hashed else cells  # weights of one tiling
        self._strides = (num_tiles + 1) ** place
        self._first = np.arange(num_tilings) * self._size  # [K]
        self.num_features = num_tilings * self._size + 1
        self.num_active = num_tilings + 1  # x^T x, the same for every observation

    def __call__(self, observations: NDArray[np.float32]) -> Indices:
        """Active features [R, N, K + 1] of observations [R, N, O]."""
        scaled = np.clip((observations - self._low) * self._scale, self._least, self._most)
        tiles = np.floor(scaled[..., None, :] + self._offsets).astype(np.int64)  # [R, N, K, O]
        active = np.empty((*observations.shape[:-1], self.num_active), np.int64)
        active[..., :-1] = self._first + (self._hash(tiles) if self.hashed else (tiles * self._strides).sum(-1))
        active[..., -1] = self.num_features - 1
        return active

    def _hash(self, tiles: Indices) -> Indices:
        """A number below `_size` for the coordinates [..., O] of a tile, the same in every process."""
        mixed = np.zeros(tiles.shape[:-1], np.uint64)
        for place in range(tiles.shape[-1]):
            mixed = (mixed ^ tiles[..., place].astype(np.uint64)) * PRIME
            mixed = (mixed ^ (mixed >> SHIFT)) * FIRST_MIX
            mixed = (mixed ^ (mixed >> SHIFT)) * SECOND_MIX
        return ((mixed ^ (mixed >> SHIFT)) % np.uint64(self._size)).astype(np.int64)
