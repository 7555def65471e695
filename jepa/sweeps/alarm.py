"""A wait that ends with the first child process that does: no trial's place stays empty."""

import select
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any


def pass_over(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal that only has to wake: without a handler Python does not."""


class Alarm:
    """Ends a wait early at the end of a child process, or at any signal with a handler.

    Only the main thread hears signals; elsewhere a wait takes its time. What a wait before has
    not seen does not count: a child of the loop itself, as a call of squeue, must not hurry it.
    """

    def __init__(self) -> None:
        self.ends: tuple[socket.socket, socket.socket] | None = None
        self.before: Any = None
        self.descriptor = -1

    def open(self) -> None:
        """Listen."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.ends = socket.socketpair()
        for end in self.ends:
            end.setblocking(False)
        self.descriptor = signal.set_wakeup_fd(self.ends[1].fileno(), warn_on_full_buffer=False)
        self.before = signal.signal(signal.SIGCHLD, pass_over)

    def wait(self, seconds: float) -> None:
        """Wait so long at the most."""
        if self.ends is None:
            time.sleep(seconds)
            return
        self.drain(self.ends[0])
        select.select([self.ends[0]], [], [], seconds)

    def drain(self, end: socket.socket) -> None:
        """Forget what was heard so far."""
        try:
            while end.recv(4096):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Put everything back."""
        if self.ends is None:
            return
        signal.signal(signal.SIGCHLD, self.before)
        signal.set_wakeup_fd(self.descriptor)
        for end in self.ends:
            end.close()
        self.ends = None
