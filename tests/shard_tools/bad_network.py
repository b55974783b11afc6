"""A TCP proxy that loses, delays and damages a share of the requests that pass it, by a seed."""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from types import TracebackType
from typing import Self

_BLOCK = 1 << 16
FATES = ("drop", "delay", "corrupt_request", "corrupt_response")


class BadNetwork:
    """Listens on a free port of 127.0.0.1 while its block runs; servers that close after each request give a fate to each.

    Args:
        port: of the server behind.
        share: of requests that are lost half-way, and of those that are delayed; of downloads and uploads more are damaged.
        delay_s: of a delayed one.

    Attributes:
        met: how many requests met each fate, and `all`.
    """

    def __init__(self, port: int, share: float, delay_s: float, seed: int = 0) -> None:
        self._server_port = port
        self._share = share
        self._delay_s = delay_s
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.met: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        # The loop itself holds tasks by weak references only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._pass_on(reader, writer)
        writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(_BLOCK)
        # Some requests have nothing to damage, and uploads are few.
        damage = self._share * {b"PUT": 4, b"GET": 3}.get(first[:3], 0)
        fate = self._rng.choices(["drop", "delay", "corrupt", ""], [self._share, self._share, damage, 1 - 2 * self._share - damage])[0]
        self.met["all"] += 1
        if fate == "delay":
            self.met[fate] += 1
            await asyncio.sleep(self._delay_s)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        upload = fate == "corrupt" and first.startswith(b"PUT")
        there = asyncio.create_task(self._pump(first, reader, server_writer, "corrupt_request" if upload else ""))
        self._tasks.add(there)
        there.add_done_callback(self._tasks.discard)
        try:
            if fate == "drop":
                self.met[fate] += 1
                block = await server_reader.read(_BLOCK)
                writer.write(block[: self._rng.randrange(len(block))])
            else:
                await self._pump(b"", server_reader, writer, "corrupt_response" if fate == "corrupt" and not upload else "")
        finally:
            there.cancel()
            server_writer.close()

    async def _pump(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: str) -> None:
        """Pass bytes on, with a bit of the first piece of the body flipped if that is the fate."""
        head, is_over = b"", not fate
        with contextlib.suppress(OSError):
            while block := first or await reader.read(_BLOCK):
                first = b""
                # Signatures cover what stands before the body, and a real server refuses a request that lacks them.
                start = 0 if b"\r\n\r\n" in head else (head + block).find(b"\r\n\r\n") + 4 - len(head)
                head += b"" if b"\r\n\r\n" in head else block
                if not is_over and b"\r\n\r\n" in head and start < len(block):
                    self.met[fate] += 1
                    is_over = True
                    damaged = bytearray(block)
                    damaged[self._rng.randrange(start, len(block))] ^= 1 << self._rng.randrange(8)
                    block = bytes(damaged)
                writer.write(block)
                await writer.drain()
