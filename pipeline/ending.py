"""The end of a web process: those who wait in it are told at once, while its server still waits for them."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

Tell = Callable[[], None]


class Ending:
    """Hears the signals that end the process, while anybody waits, and hands them on to whom they were for.

    ASGI has no word for this: a server tells its application that it ends when the last request is over. One for a
    process: a second one would come between this one and the server.
    """

    def __init__(self) -> None:
        self.told = False
        self._waiting: dict[object, Tell] = {}
        self._before: dict[int, Callable[..., Any]] = {}

    @contextmanager
    def telling(self, tell: Tell) -> Iterator[None]:
        """Within, `tell` is called in the loop that runs here when such a signal comes; at once when one has come."""
        loop, mark = asyncio.get_running_loop(), object()
        if not self._waiting:
            self._listen()

        def pass_on() -> None:
            loop.call_soon_threadsafe(tell)

        self._waiting[mark] = pass_on
        if self.told:
            tell()
        try:
            yield
        finally:
            del self._waiting[mark]
            if not self._waiting:
                self._leave()

    def _listen(self) -> None:
        # Signals are heard by the main thread alone; a server in another one is ended by other means.
        if threading.current_thread() is not threading.main_thread():
            return
        for sign in SIGNALS:
            before = signal.getsignal(sign)
            if callable(before):
                self._before[sign] = before
                signal.signal(sign, self._heard)

    def _heard(self, sign: int, frame: Any) -> None:
        self.told = True
        for tell in list(self._waiting.values()):
            tell()
        self._before[sign](sign, frame)

    def _leave(self) -> None:
        for sign, before in self._before.items():
            if signal.getsignal(sign) == self._heard:
                signal.signal(sign, before)
        self._before.clear()


OF_THIS_PROCESS = Ending()
"""What everybody who waits in the web process listens to."""
