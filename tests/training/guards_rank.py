"""One rank of test_guards_ranks.py: what each guard says where one rank differs; prints a line of JSON a rank."""

import json
import sys

import torch
import torch.distributed as dist

from dgl_scale import distributed
from dgl_scale.errors import DglError
from dgl_scale.training.guards import check_finite_loss, check_synchronised


def message_of(work: object, *arguments: object) -> str:
    try:
        work(*arguments)
    except DglError as error:
        return str(error)
    return "nothing"


def main() -> None:
    dist.init_process_group("gloo")
    distributed.start_control_group()
    rank = distributed.rank()
    features = torch.full((2, 3), float("nan") if rank == 1 else 1.0)
    parameter = torch.nn.Parameter(torch.ones(3))
    messages = [message_of(check_synchronised, [("a", parameter)], 4)]
    if rank == 2:
        parameter.data[1] = torch.nextafter(parameter.data[1], torch.tensor(2.0))
    messages.append(message_of(check_synchronised, [("a", parameter)], 5))
    messages.append(message_of(check_finite_loss, float("nan"), 6, [features], [f"clip{rank}"]))
    numbers = distributed.reduce_numbers({"a": (float(rank), "mean"), "b": (float(rank), "max"), "c": (float(rank), "sum")})
    agreed = distributed.agree([rank, 5 - rank])
    lines = distributed.gather_objects({"messages": messages, "numbers": numbers, "agreed": agreed})
    if rank == 0:
        print(json.dumps(lines))
    distributed.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
