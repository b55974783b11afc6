"""One rank of test_loss.py: prints the mean over ranks of its features' parameter gradient, as an engine would."""

import json
import sys

import torch
import torch.distributed as dist

from dgl_scale.training.loss import feature_gradients, global_contrastive_loss, surrogate_loss


def main(total: int, micro: int) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, total, 6, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    share = total // world
    local = inputs[:, rank * share : (rank + 1) * share]

    def encode(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.normalize(torch.tanh(part @ weights), dim=-1)
        return features[0], features[1]

    if micro == share:
        text, video = encode(local)
        result = global_contrastive_loss(text, video, 7.0)
        result.loss.backward()
    else:
        with torch.no_grad():
            cached = [encode(part) for part in local.split(micro, dim=1)]
        result, text_gradient, video_gradient = feature_gradients(torch.cat([t for t, _ in cached]), torch.cat([v for _, v in cached]), 7.0)
        for part, text_part, video_part in zip(
            local.split(micro, dim=1), text_gradient.split(micro), video_gradient.split(micro), strict=True
        ):
            surrogate_loss(encode(part), (text_part, video_part)).backward()
    gradient = weights.grad / world
    dist.all_reduce(gradient)
    if rank == 0:
        print(json.dumps({"loss": float(result.loss), "recall": float(result.recall_at_1), "gradient": gradient.flatten().tolist()}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
