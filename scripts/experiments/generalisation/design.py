"""The design: 128 configurations of ten factors with two levels each, and the order of the runs.

A full factorial of ten factors has 1,024 configurations. This is an eighth of it, chosen so that

- many pairs of configurations differ in one factor only, which the granulated coefficient of Jiang
  et al. 2020 (arXiv 1912.02178) and the environments of Dziugaite et al. 2020 (arXiv 2010.11924)
  are made of: the configurations are corners of 16 cubes, in each of which three factors run
  through all their levels while seven are fixed, 192 such pairs in all, 16 or 24 for each factor;
- every factor is balanced at any time: the cubes come in eight blocks of two, of which the second
  has the opposite level of everything that is fixed in the first, so a block of 16 runs has each
  factor at each level eight times, and a factor's effect is not mixed up with those of pairs;
- factors are nearly uncorrelated with each other: `CUBES` is the best that `search` finds
  (`python scripts/experiments/generalisation/design.py` searches again).

The optimiser (SGD, AdamW, SAM) is two of the factors, which optimiser takes the step and whether
the gradient is sharpness-aware: SAM is made of either.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

import numpy as np

__all__ = ["FACTORS", "SEEDS", "Configuration", "configurations", "order"]

# Both levels of each factor, the low one first.
FACTORS: dict[str, tuple] = {
    "family": ("plain", "residual"),
    "width": (16, 32),
    "depth": (5, 9),
    "batch_size": (16, 64),
    "learning_rate": ("low", "high"),
    "weight_decay": ("none", "some"),
    "augmentation": ("none", "mirror"),
    "label_noise": (0.0, 0.1),
    "optimiser": ("sgd", "adamw"),
    "sam": ("no", "yes"),
}
SEEDS = (0, 1, 2)
# A block a line, a factor a column: "." runs through both levels, "+" (high) and "-" (low) are the
# levels of the block's first cube.
CUBES = """
--.-+.-+-.
++.-++++..
-+--...---
+.+---.+.-
+-..++--.-
..+++-+.--
-++..+-.+-
.-+.-++--.
"""


@dataclass(frozen=True)
class Configuration:
    """One configuration.

    Attributes:
        index: Its number, which `--only` takes.
        block: The block of 16 that it is in.
        signs: -1 or 1 for each factor in `FACTORS`, its low or its high level.
    """

    index: int
    block: int
    signs: tuple[int, ...]

    @property
    def levels(self) -> dict:
        """The level of each factor."""
        return {n: v[s > 0] for (n, v), s in zip(FACTORS.items(), self.signs, strict=True)}


def corners(cube: np.ndarray) -> np.ndarray:
    """Return the 16 configurations of a block from its line of -1, 0 (runs) and 1."""
    free = np.flatnonzero(cube == 0)
    steps = np.array(list(itertools.product([-1, 1], repeat=len(free))))
    both = []
    for fixed in (cube, -cube):
        signs = np.tile(fixed, (len(steps), 1))
        signs[:, free] = steps
        both.append(signs)
    return np.concatenate(both)


def configurations() -> list[Configuration]:
    """Return the 128 configurations."""
    levels = {"-": -1, ".": 0, "+": 1}
    blocks = [corners(np.array([levels[c] for c in line])) for line in CUBES.split()]
    every = [(block, signs) for block, found in enumerate(blocks) for signs in found.tolist()]
    return [Configuration(i, block, tuple(signs)) for i, (block, signs) in enumerate(every)]


def order() -> list[tuple[Configuration, int]]:
    """Return all runs, (configuration, seed), in the order in which they are made.

    All configurations with the first seed, then with the next; the blocks of a seed, and the
    configurations of a block, in random order.
    """
    generator, every, runs = random.Random(17), configurations(), []
    blocks = sorted({c.block for c in every})
    for seed in SEEDS:
        for block in generator.sample(blocks, len(blocks)):
            chosen = [c for c in every if c.block == block]
            runs += [(c, seed) for c in generator.sample(chosen, len(chosen))]
    return runs


def _draw(generator: np.random.Generator, blocks: int, free: int) -> np.ndarray:
    """Return random cubes, (blocks, factors): each factor runs about equally often."""
    n = len(FACTORS)
    often = np.full(n, blocks * free // n)
    often[generator.permutation(n)[: blocks * free % n]] += 1
    while True:
        running = generator.permutation(np.repeat(np.arange(n), often)).reshape(blocks, free)
        if all(len(set(row)) == free for row in running):
            break
    cubes = generator.choice([-1, 1], (blocks, n))
    for cube, row in zip(cubes, running, strict=True):
        cube[row] = 0
    return cubes


def _imbalance(cubes: np.ndarray) -> int:
    """Return the sum of the fourth powers of correlations between factors, times 8^4."""
    return int((np.triu(cubes.T @ cubes, 1) ** 4).sum())


def _pair_imbalance(cubes: np.ndarray) -> float:
    """Return the same for products of two factors; infinite if a configuration comes twice."""
    signs = np.concatenate([corners(cube) for cube in cubes])
    if len(np.unique(signs, axis=0)) < len(signs):
        return np.inf
    pairs = itertools.combinations(range(signs.shape[1]), 2)
    products = np.column_stack([signs[:, i] * signs[:, j] for i, j in pairs])
    return float((np.triu(products.T @ products / len(signs), 1) ** 2).sum())


def search(draws: int = 1000) -> str:
    """Return the least correlated of some random cubes, each improved by changing signs."""
    generator, found = np.random.default_rng(2026), []
    for _ in range(draws):
        cubes = _draw(generator, blocks=8, free=3)
        best, before = _imbalance(cubes), None
        while best != before:
            before = best
            for place in np.ndindex(cubes.shape):
                cubes[place] *= -1
                if (cost := _imbalance(cubes)) < best:
                    best = cost
                else:
                    cubes[place] *= -1
        found.append((best, _pair_imbalance(cubes), cubes))
    chosen = min(found, key=lambda item: item[:2])[2]
    return "\n".join("".join("-.+"[sign + 1] for sign in cube) for cube in chosen)


if __name__ == "__main__":
    print(search())
