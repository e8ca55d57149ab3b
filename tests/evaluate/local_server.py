"""A real HTTP server of this machine whose every answer a test decides."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from aiohttp import web

from rec import ports


@contextmanager
def served(path: str, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Iterator[str]:
    """Answers to every method at `path`, in a thread; yields the server's address, without a path."""
    port, ready, ended = ports.free(), Event(), Event()

    async def serve() -> None:
        application = web.Application()
        application.router.add_route("*", path, answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()
        while not ended.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    thread = Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        ended.set()
        thread.join()
