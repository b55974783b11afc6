"""Two hosts on this machine and the network between them: network namespaces, each with one interface, and a thread that passes
their packets on as late, as incompletely, or not at all, as it is told.

The thread does what `tc netem` does, without a module of the kernel that many kernels lack. Needs root, `ip` and /dev/net/tun.
"""

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

ADDRESSES = ("10.88.0.1", "10.88.0.2")
INTERFACE = "link0"

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_LARGEST_PACKET = 65_535
_POLL_S = 0.05

Rule = Callable[[bytes], bool]
"""Whether an IPv4 packet is let through."""


class Network:
    """What happens to each packet between the two hosts, from now on.

    Attributes:
        hosts: the names of their namespaces.
        delay_s: one way.
        loss: fraction of packets that vanish, of either direction.
        rule: packets that it refuses vanish too, without a word to the sender.
        passed, lost: numbers of packets.
    """

    def __init__(self, hosts: tuple[str, str], devices: tuple[int, int]) -> None:
        self.hosts = hosts
        self.delay_s = 0.0
        self.loss = 0.0
        self.rule: Rule = everything
        self.passed = self.lost = 0
        self._devices = devices
        self._random = random.Random(0)
        self._on_their_way: list[tuple[float, int, int, bytes]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def inside(self, host: int) -> list[str]:
        """The words before a command by which it runs on a host."""
        return ["ip", "netns", "exec", self.hosts[host]]

    def set_tcp_retries(self, count: int) -> None:
        """How often the hosts repeat what is not acknowledged before they give a connection up."""
        for host in range(2):
            subprocess.run([*self.inside(host), "sh", "-c", f"echo {count} > /proc/sys/net/ipv4/tcp_retries2"], check=True)

    def close(self) -> None:
        """Pass on nothing more."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        first, second = self._devices
        order = itertools.count()
        while not self._closed.is_set():
            next_s = self._on_their_way[0][0] - time.monotonic() if self._on_their_way else _POLL_S
            for source in select.select(self._devices, [], [], min(max(next_s, 0.0), _POLL_S))[0]:
                packet = os.read(source, _LARGEST_PACKET)
                if self._random.random() < self.loss or not self.rule(packet):
                    self.lost += 1
                    continue
                target = second if source == first else first
                heapq.heappush(self._on_their_way, (time.monotonic() + self.delay_s, next(order), target, packet))
            while self._on_their_way and self._on_their_way[0][0] <= time.monotonic():
                *_, target, packet = heapq.heappop(self._on_their_way)
                os.write(target, packet)
                self.passed += 1


def everything(packet: bytes) -> bool:
    """A network as it should be."""
    return True


def nothing(packet: bytes) -> bool:
    """A cable that is cut."""
    return False


def only_port(port: int) -> Rule:
    """A firewall that lets TCP through to and from one port."""

    def rule(packet: bytes) -> bool:
        header = 4 * (packet[0] & 15)
        return port in struct.unpack_from("!HH", packet, header)

    return rule


def missing() -> str | None:
    """What a machine lacks for this, or None."""
    if shutil.which("ip") is None:
        return "ip (Debian: iproute2)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun"
    may = subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False)
    return None if may.returncode == 0 else "the right to make network namespaces (root)"


@contextlib.contextmanager
def two_hosts() -> Iterator[Network]:
    """Make them, and remove all that was made."""
    hosts = (f"dgl-{os.getpid()}-a", f"dgl-{os.getpid()}-b")
    with contextlib.ExitStack() as stack:
        devices = []
        for host, address in zip(hosts, ADDRESSES, strict=True):
            _ip("netns", "add", host)
            stack.callback(_ip, "netns", "del", host)
            device = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, device)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", host[:15].encode(), _IFF_TUN | _IFF_NO_PI))
            _ip("link", "set", host[:15], "netns", host, "name", INTERFACE)
            _ip("-n", host, "addr", "add", f"{address}/30", "dev", INTERFACE)
            for name in ("lo", INTERFACE):
                _ip("-n", host, "link", "set", name, "up")
            devices.append(device)
        network = Network(hosts, (devices[0], devices[1]))
        stack.callback(network.close)
        yield network


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
