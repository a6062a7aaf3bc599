"""Seeds derived from names, never reused between roles."""

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    The parts name what the seed is for, e.g. ``derive_seed(study_seed, "confirm", 3, "batches")``.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator seeded from the parts."""
    return np.random.default_rng(derive_seed(*parts))
