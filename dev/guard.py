"""Run one command, and kill it and all its descendants when the caller ends.

``python guard.py LINK COMMAND…``: LINK is the descriptor of one end of a socket
pair. The guard writes the command's process id and a newline to it. Every byte
that it reads from it is the number of a signal to deliver: SIGKILL goes to the
command and all its descendants, any other signal to the command alone. When the
other end closes, because the caller ended (even by SIGKILL), the guard kills the
whole tree. The guard ends when the command and all its descendants have ended,
with the command's status (128 + N after signal N).

A process group is not enough for this: job processes and daemons leave it, and
a caller that was killed cannot signal it. On Linux the guard is the "child
subreaper", so that no descendant can escape it.

It imports only psutil and the standard library, so that it starts in milliseconds.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import time

import psutil

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

# Helpers such as multiprocessing's resource tracker clean up and end shortly after the command.
LEFTOVERS_GRACE_S = 1.0
KILL_TIMEOUT_S = 5.0


def main(link_fd: int, command: list[str]) -> int:
    link = socket.socket(fileno=link_fd)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    child = _spawn(command)
    with contextlib.suppress(OSError):  # the caller is gone: the read below sees it too
        link.sendall(b"%d\n" % child)

    status = None
    with selectors.DefaultSelector() as selector:
        selector.register(link, selectors.EVENT_READ)
        selector.register(wake_read, selectors.EVENT_READ)
        while status is None:
            for key, _ in selector.select():
                if key.fileobj is link:
                    _deliver(_read(link), child)
                else:
                    os.read(wake_read, 4096)
            status = _reap().get(child)

    deadline = time.monotonic() + LEFTOVERS_GRACE_S
    while time.monotonic() < deadline and _alive():
        time.sleep(0.01)
    _kill_descendants()
    return os.waitstatus_to_exitcode(status)


def _read(link: socket.socket) -> bytes:
    try:
        # No bytes mean the end of the stream: the caller is gone.
        return link.recv(64) or bytes([signal.SIGKILL])
    except OSError:
        return bytes([signal.SIGKILL])


def _spawn(command: list[str]) -> int:
    guard = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        # A session of its own: Ctrl-C in the terminal reaches only the caller, which then stops
        # its children in the right order.
        os.setsid()
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)  # the guard ended before the line above took effect
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and exec inherits that
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    finally:
        os._exit(127)


def _deliver(signals: bytes, child: int) -> None:
    for number in signals:
        if number == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)
            _kill_descendants()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)


def _reap() -> dict[int, int]:
    """Reap every ended child, including adopted ones; return {process id: wait status}."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def _kill_descendants() -> None:
    """Kill until no descendant is left: a process may fork during the search."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        alive = _alive()
        if not alive:
            return
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.005)


def _alive() -> list[psutil.Process]:
    """Return every descendant that has not ended."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _prctl(option: int, value: int) -> None:
    """Call Linux's prctl. Elsewhere do nothing: a descendant whose parent has ended escapes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    sys.exit(code if code >= 0 else 128 - code)
