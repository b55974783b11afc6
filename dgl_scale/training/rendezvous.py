"""How ranks meet: who is there, who is missing, and whether all were started with the same words; before any collective.

A collective with a rank missing waits in silence, and one between ranks of different configs hangs or trains nonsense.
So each rank leaves a note in the store that the process group is made of anyway; rank 0 reads them and gives a verdict.
"""

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from dgl_scale import __version__
from dgl_scale.config_section import Section
from dgl_scale.errors import ConfigError, DglError
from dgl_scale.telemetry import say
from dgl_scale.training.hosts import why_unreachable
from dgl_scale.training.launch import hosts_by_rank

_POLL_S = 0.1
_FIRST_WORD_S = 10.0
_UNREACHABLE_S = 30.0
_PROBE_S = 5.0
_AGREED = "go"

Facts = Mapping[str, Any]
"""Name to value, JSON: what must be the same on all ranks."""


def meet(facts: Facts, timeout_s: float) -> Store:
    """Wait for all ranks at MASTER_ADDR:MASTER_PORT and compare their `facts`; the store for the process group.

    Raises:
        DglError: on all ranks that came, naming the ranks that did not within `timeout_s`, and their hosts where known.
        ConfigError: on all ranks, naming a rank whose facts differ, and how.
    """
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return meet_as(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), address, facts, timeout_s)


def meet_as(rank: int, world_size: int, address: tuple[str, int], facts: Facts, timeout_s: float) -> Store:
    """As `meet`, with what the environment says given: a process that is several ranks at once has but one environment."""
    store = _open_store(rank, world_size, address, timeout_s)
    facts = {**versions(), **facts}
    store.set(f"rank/{rank}", json.dumps({"host": socket.gethostname(), "facts": facts}))
    if rank == 0:
        verdict = _judge(store, world_size, address, facts, timeout_s)
        store.set("verdict", json.dumps(verdict))
        if verdict[0] != _AGREED:
            _wait_for_readers(store, world_size)
    else:
        # Rank 0 gives up after `timeout_s`; it may itself have come late.
        store.set_timeout(timedelta(seconds=2 * timeout_s))
        verdict = json.loads(store.get("verdict"))
        store.set(f"read/{rank}", "")
    kind, message = verdict
    if kind != _AGREED:
        error: DglError = ConfigError(message) if kind == "config" else DglError(message)
        raise error
    return store


def launch_facts(config: Section) -> dict[str, Any]:
    """All values of a config by dotted key, for `meet`."""
    return _flatten(config.model_dump(mode="json"), "")


def versions() -> dict[str, str]:
    """Of what ranks must have in common."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"dgl_scale": __version__, "python": python, **{name: version(name).partition("+")[0] for name in ("torch", "deepspeed")}}


def first_difference(expected: Facts, found: Facts) -> str | None:
    """`name is A here and B there` for the first fact that differs, or None."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if expected.get(name) != found.get(name):
            return f"{name} is {found.get(name)!r} there and {expected.get(name)!r} on rank 0"
    return None


def missing_ranks(ranks: Sequence[int], hosts: Sequence[str] | None) -> str:
    """`ranks 2, 3 (host-b)`: the ranks as a message names them."""
    named = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{' …' if len(ranks) > 8 else ''}"
    return f"{named} ({', '.join(dict.fromkeys(hosts[rank] for rank in ranks))})" if hosts else named


def _open_store(rank: int, world_size: int, address: tuple[str, int], timeout_s: float) -> Store:
    # torchrun's own process serves the store, and serves it again after a restart.
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = TCPStore(
        *address, world_size, rank == 0 and not is_served, timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True
    )
    return PrefixStore(f"dgl_scale/{attempt}", store)


def _judge(store: Store, world_size: int, address: tuple[str, int], facts: Facts, timeout_s: float) -> tuple[str, str]:
    hosts = hosts_by_rank(world_size)
    missing = _wait_for_all(lambda rank: store.check([f"rank/{rank}"]), world_size, address, hosts, timeout_s)
    if missing:
        return "missing", missing
    for rank in range(1, world_size):
        note = json.loads(store.get(f"rank/{rank}"))
        if difference := first_difference(facts, note["facts"]):
            return "config", f"rank {rank} on {note['host']} was started with something else: {difference}; give all ranks the same"
    return _AGREED, ""


def _wait_for_all(
    is_there: Callable[[int], bool], world_size: int, address: tuple[str, int], hosts: Sequence[str] | None, timeout_s: float
) -> str | None:
    """None when all are there; else what to say of those that are missing."""
    begin = time.monotonic()
    next_word_s = _FIRST_WORD_S
    missing = list(range(world_size))
    reasons: dict[str, str] = {}
    while missing := [rank for rank in missing if not is_there(rank)]:
        waited_s = time.monotonic() - begin
        if waited_s >= next_word_s and waited_s < timeout_s:
            reasons = _unreachable(missing, hosts)
            say(f"waiting for {missing_ranks(missing, hosts)}{_because(reasons)}, {waited_s:.0f} s of at most {timeout_s:.0f}")
            next_word_s *= 2
        if waited_s >= timeout_s or (reasons and waited_s >= _UNREACHABLE_S):
            return (
                f"{missing_ranks(missing, hosts)} of {world_size} did not come to {address[0]}:{address[1]} "
                f"within {waited_s:.0f} s{_because(reasons)}; look at the first error of those ranks, "
                "or try the hosts with `dgl-scale doctor --hostfile FILE`"
            )
        time.sleep(_POLL_S)
    return None


def _unreachable(missing: Sequence[int], hosts: Sequence[str] | None) -> dict[str, str]:
    names = dict.fromkeys(hosts[rank] for rank in missing) if hosts else ()
    reasons = {name: why_unreachable(name, timeout_s=_PROBE_S) for name in names}
    return {name: reason for name, reason in reasons.items() if reason}


def _flatten(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _because(reasons: Mapping[str, str]) -> str:
    return "".join(f"; {host}: {reason}" for host, reason in reasons.items())


def _wait_for_readers(store: Store, world_size: int) -> None:
    """Serve the store until the ranks that came have read the verdict, some seconds at most."""
    came = [rank for rank in range(1, world_size) if store.check([f"rank/{rank}"])]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not all(store.check([f"read/{rank}"]) for rank in came):
        time.sleep(_POLL_S)
