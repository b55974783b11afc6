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
        share: of requests that meet each of the four fates.
        delay_s: of a delayed one.
    """

    def __init__(self, port: int, share: float, delay_s: float, seed: int = 0) -> None:
        self._server_port = port
        self.share = share
        self._delay_s = delay_s
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
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
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = self._rng.choices([*FATES, ""], [*[self.share] * 4, 1 - 4 * self.share])[0]
        self.met["all"] += 1
        if fate == "delay":
            self.met[fate] += 1
            await asyncio.sleep(self._delay_s)
        with contextlib.suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
            there = asyncio.create_task(self._pump(reader, server_writer, fate, "corrupt_request"))
            await self._pump(server_reader, writer, fate, "corrupt_response")
            there.cancel()
            server_writer.close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fate: str, mine: str) -> None:
        head, is_body, is_over = b"", False, False
        with contextlib.suppress(OSError):
            while block := await reader.read(_BLOCK):
                if not is_body:
                    head += block
                    start = head.find(b"\r\n\r\n") + 4 - len(head) + len(block)
                    is_body = b"\r\n\r\n" in head
                else:
                    start = 0
                if fate == "drop" and mine == "corrupt_response":
                    self.met[fate] += 1
                    writer.write(block[: self._rng.randrange(len(block))])
                    return
                # Signatures cover what stands before the body, and a real server refuses a request that lacks them.
                if fate == mine and is_body and start < len(block) and not is_over:
                    self.met[fate] += 1
                    is_over = True
                    damaged = bytearray(block)
                    damaged[self._rng.randrange(max(start, 0), len(block))] ^= 1 << self._rng.randrange(8)
                    block = bytes(damaged)
                writer.write(block)
                await writer.drain()
