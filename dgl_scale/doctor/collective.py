"""One process of `doctor`'s collective: `python -m dgl_scale.doctor.collective BACKEND` under a launcher's variables."""

import os
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist

_MIB = 1 << 20


def main(backend: str) -> int:
    """Sum 16 MiB over the ranks and print how fast."""
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    ones = torch.ones(4 * _MIB, device=device)
    dist.all_reduce(torch.ones(1, device=device))  # connects
    begin = time.perf_counter()
    dist.all_reduce(ones)
    is_right = bool((ones == dist.get_world_size()).all())
    seconds = time.perf_counter() - begin
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.write(f"16 MiB summed in {1e3 * seconds:.0f} ms\n" if is_right else "the sum is wrong\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
