"""Keys from a terminal while a run trains, without waiting and without a line end."""

import atexit
import os
import select
import sys


class Terminal:
    """Hears single keys on standard input, if that is a terminal and the run is in its foreground.

    `close` gives the terminal back as it was; so does the end of the process.
    """

    def __init__(self) -> None:
        self.before: list | None = None
        self.descriptor = -1

    def open(self) -> None:
        """Let keys through one by one; the signals of Ctrl-C and Ctrl-Z stay."""
        try:
            self.descriptor = sys.stdin.fileno()
        except (AttributeError, OSError, ValueError):
            return  # no standard input at all
        if not os.isatty(self.descriptor) or not self.in_front():
            return
        import termios
        import tty

        self.before = termios.tcgetattr(self.descriptor)
        atexit.register(self.close)
        tty.setcbreak(self.descriptor, termios.TCSANOW)

    def in_front(self) -> bool:
        """Tell whether the terminal is ours: touching it from the background stops a process."""
        try:
            return os.tcgetpgrp(self.descriptor) == os.getpgrp()
        except OSError:
            return False

    def key(self) -> str:
        """Return a key that was pressed, or an empty string."""
        if self.before is None or not self.in_front():
            return ""
        ready, _, _ = select.select([self.descriptor], [], [], 0)
        return os.read(self.descriptor, 1).decode(errors="replace") if ready else ""

    def close(self) -> None:
        """Put the terminal back."""
        if self.before is None:
            return
        import termios

        before, self.before = self.before, None
        atexit.unregister(self.close)
        if self.in_front():
            termios.tcsetattr(self.descriptor, termios.TCSADRAIN, before)
