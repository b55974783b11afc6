"""Whether this machine multiplies bfloat16 faster than float32, found out by trying."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import torch

_SIZE = 512
_ROUNDS = 5
_CLEARLY = 1.4
"""Times as fast; less is eaten up by the pairs that must be looked at again."""
_ROUNDED_WIDTH = 4096


@functools.cache
def is_bfloat16_faster() -> bool:
    """Once a process, in about 50 ms: on one thread, as tiles are computed."""
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return pool.submit(_try_both).result()


def _try_both() -> bool:
    # A product that adds in bfloat16 would stop growing at 256; the bounds are for sums in float32.
    ones = torch.ones(16, _ROUNDED_WIDTH, dtype=torch.bfloat16)
    if float((ones @ ones.T).min()) != _ROUNDED_WIDTH:
        return False
    return _seconds(torch.bfloat16) * _CLEARLY < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    factors = torch.ones(2, _SIZE, _SIZE, dtype=dtype)
    product = torch.empty(_SIZE, _SIZE, dtype=dtype)
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        torch.mm(factors[0], factors[1].T, out=product)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
