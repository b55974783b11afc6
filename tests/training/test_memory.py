import pytest
import torch

from dgl_scale.config import RunConfig
from dgl_scale.training import memory
from dgl_scale.training.memory import is_out_of_memory, memory_error

CPU = torch.device("cpu")


def config(**training: object) -> RunConfig:
    sizes = {"global_batch_size": 512, "max_steps": 1, "precision": "bf16", **training}
    return RunConfig.model_validate({"name": "x", "model": {"clip": "ViT-L-14-quickgelu"}, "training": sizes})


@pytest.mark.parametrize(
    ("gib", "micro", "training", "advice"),
    [
        (80, 128, {}, "set training.micro_batch_size=50, which changes speed and memory only"),
        (80, 40, {}, "set training.micro_batch_size=20,"),  # the estimate says that 40 fit, the device that they do not
        (1, 4, {}, "set training.micro_batch_size=1 and training.activation_checkpointing=true"),
        (1, 4, {"activation_checkpointing": True}, "take ZeRO stage 3 on more ranks"),
    ],
)
def test_the_message_says_what_fits(monkeypatch: pytest.MonkeyPatch, gib: int, micro: int, training: dict, advice: str) -> None:
    monkeypatch.setattr(memory, "_device_bytes", lambda device: gib << 30)
    message = str(memory_error(config(**training), micro, CPU))
    assert message.startswith(f"memory of the cpu is too small for micro-batches of {micro}: {gib}.0 GiB, the estimate is ")
    assert advice in message


def test_allocation_failures_are_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
