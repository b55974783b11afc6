"""One rank of test_rendezvous.py: meets the others, prints the sum of all ranks' numbers, or the error's one line."""

import os
import sys

import torch

from dgl_scale.errors import DglError
from dgl_scale.training.launch import describe_launch
from dgl_scale.training.rendezvous import meet


def main(lr: str, timeout_s: str) -> int:
    describe_launch(os.environ)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store = meet({"optim.lr": float(lr), "seed": 0}, float(timeout_s))
    except DglError as error:
        print(f"{type(error).__name__}: {error}")
        return int(error.exit_code)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    total = torch.tensor([rank + 1])
    torch.distributed.all_reduce(total)
    print(f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} {total.item()}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
