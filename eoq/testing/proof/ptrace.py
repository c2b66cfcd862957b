"""Seeing each write and sync of a process before it happens, by ptrace. Linux only; `can_trace` says whether it works.

A filter of the kernel (seccomp) stops the traced process at the few system calls that matter, so that the others cost
nothing. It holds for all processes that it starts. A process that is killed at such a stop has not done the call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from .children import fork

_X86_64: Final = 0xC000003E
_AARCH64: Final = 0xC00000B7
_ARCHITECTURES: Final = {"x86_64": _X86_64, "aarch64": _AARCH64}
_NUMBERS: Final[dict[int, dict[str, int]]] = {
    _X86_64: {
        "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "sendfile": 40, "connect": 42, "sendto": 44, "fsync": 74,
        "fdatasync": 75, "truncate": 76, "ftruncate": 77, "rename": 82, "creat": 85, "unlink": 87, "openat": 257,
        "unlinkat": 263, "renameat": 264, "fallocate": 285, "pwritev": 296, "renameat2": 316, "copy_file_range": 326,
        "pwritev2": 328, "openat2": 437,
    },
    _AARCH64: {
        "write": 64, "pwrite64": 68, "writev": 66, "sendfile": 71, "connect": 203, "sendto": 206, "fsync": 82,
        "fdatasync": 83, "truncate": 45, "ftruncate": 46, "openat": 56, "unlinkat": 35, "renameat": 38,
        "fallocate": 47, "pwritev": 70, "renameat2": 276, "copy_file_range": 285, "pwritev2": 287,
        "openat2": 437,
    },
}  # fmt: skip
_IO_URING_SETUP: Final = 425
"""On both architectures. What a program writes by io_uring is no system call, so it could not be seen."""
_TRACEME: Final = 0
_CONT: Final = 7
_SETOPTIONS: Final = 0x4200
_GET_SYSCALL_INFO: Final = 0x420E
_OPTIONS: Final = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
"""Follow forks, vforks, threads and exec; stop where the filter says so; let no traced process outlive the tracer."""
_EVENT_SECCOMP: Final = 7
_WALL: Final = 0x40000000
_INFO: Final = struct.Struct("=B3xIQQQ6Q")
_SET_NO_NEW_PRIVILEGES: Final = 38
_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_RET_TRACE: Final = 0x7FF00000
_RET_ALLOW: Final = 0x7FFF0000
_RET_NOT_THERE: Final = 0x00050000 | errno.ENOSYS
_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06


@dataclass(frozen=True, slots=True)
class SystemCall:
    """A system call that is about to happen: its name, its arguments, and the process that makes it."""

    name: str
    arguments: tuple[int, ...]
    pid: int

    def file(self, argument: int = 0) -> str:
        """Return the path of the file behind a descriptor; empty where it has none."""
        with suppress(OSError):
            return str(Path(f"/proc/{self.pid}/fd/{self.arguments[argument]}").readlink())
        return ""

    def memory(self, argument: int, size: int, *, text: bool = False) -> bytes:
        """Return up to ``size`` bytes at the address in an argument; of a ``text`` those before its zero byte."""
        address = self.arguments[argument]
        parts = b""
        with suppress(OSError), open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 # unbuffered
            memory.seek(address)
            while len(parts) < size:
                # Not across the end of a page: the next one may not be there.
                step = min(size - len(parts), 4096 - (address + len(parts)) % 4096)
                part = memory.read(step)
                parts += part
                if len(part) < step or (text and b"\0" in part):
                    break
        return parts

    def path(self, argument: int, folder: int | None = None) -> str:
        """Return the path in an argument, made absolute. ``folder`` is the argument with the folder's descriptor."""
        text = os.fsdecode(self.memory(argument, 4096, text=True).partition(b"\0")[0])
        if text.startswith("/"):
            return os.path.normpath(text)
        number = None if folder is None else ctypes.c_int(self.arguments[folder]).value
        base = "cwd" if number is None or number < 0 else f"fd/{number}"
        with suppress(OSError):
            return os.path.normpath(Path(f"/proc/{self.pid}/{base}").readlink() / text)
        return text


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long
    libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    return libc


def _architecture() -> int | None:
    return _ARCHITECTURES.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 2**32 else None


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def _program(architecture: int) -> bytes:
    """Return the filter: stop at the calls that matter, and at each call of a program for another architecture.

    io_uring is not there for the traced programs. They use the other calls then, as on a kernel without it.
    """
    numbers = list(_NUMBERS[architecture].values())
    count = len(numbers)
    steps = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 0, count + 3, architecture), (_LOAD, 0, 0, 0)]
    steps += [(_JUMP_IF_EQUAL, count + 2, 0, _IO_URING_SETUP)]
    steps += [(_JUMP_IF_EQUAL, count - index, 0, number) for index, number in enumerate(numbers)]
    steps += [(_RETURN, 0, 0, _RET_ALLOW), (_RETURN, 0, 0, _RET_TRACE), (_RETURN, 0, 0, _RET_NOT_THERE)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def _be_traced(libc: ctypes.CDLL, architecture: int) -> None:
    """Let the parent trace this process and all that it starts. Raises `OSError` where the system refuses."""
    program = _program(architecture)
    refused = libc.ptrace(_TRACEME, 0, None, None) != 0 or libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, None, 0, 0) != 0
    if refused:
        raise OSError(ctypes.get_errno(), "this process cannot be traced")
    os.kill(os.getpid(), signal.SIGSTOP)
    wanted = _Filter(len(program) // 8, program)
    if libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.cast(ctypes.byref(wanted), ctypes.c_void_p), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls is refused")


def trace(run: Callable[[], None], see: Callable[[SystemCall], bool]) -> int | None:
    """Run ``run`` in a child, and call ``see`` before each system call that matters. Return its exit status.

    If ``see`` returns true, all processes of the child are killed before the call, and None is returned. ``run`` does
    not return. SystemCall this in a process that has no other children. Raises `OSError` where it is refused.
    """
    architecture = _architecture()
    if architecture is None:
        raise OSError("processes are traced on Linux only, on x86_64 and aarch64")
    libc = _libc()
    pid = os.fork()
    if pid == 0:
        try:
            _be_traced(libc, architecture)
            run()
        finally:
            os._exit(127)
    _, status = os.waitpid(pid, _WALL)
    if not os.WIFSTOPPED(status) or libc.ptrace(_SETOPTIONS, pid, None, _OPTIONS) != 0:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise OSError("the system does not allow to trace processes")
    libc.ptrace(_CONT, pid, None, None)
    return _Tracer(libc, architecture, pid, see).follow()


class _Tracer:
    """The loop over the stops of the traced processes."""

    def __init__(self, libc: ctypes.CDLL, architecture: int, main: int, see: Callable[[SystemCall], bool]) -> None:
        self._libc = libc
        self._architecture = architecture
        self._names = {number: name for name, number in _NUMBERS[architecture].items()}
        self._main = main
        self._known = {main}
        self._see = see
        self._info = ctypes.create_string_buffer(_INFO.size + 8)

    def follow(self) -> int | None:
        while True:
            pid, status = os.waitpid(-1, _WALL)
            if not os.WIFSTOPPED(status):
                self._known.discard(pid)
                if pid == self._main:
                    self._kill()
                    return os.waitstatus_to_exitcode(status)
                continue
            passed_on = 0
            if status >> 16 == _EVENT_SECCOMP:
                if self._see(self._call(pid)):
                    self._kill()
                    return None
            elif status >> 16 == 0 and (pid in self._known or os.WSTOPSIG(status) != signal.SIGSTOP):
                # The first stop of a new process is the tracer's; any other is a signal for the process itself.
                passed_on = os.WSTOPSIG(status)
            self._known.add(pid)
            self._libc.ptrace(_CONT, pid, None, passed_on)

    def _call(self, pid: int) -> SystemCall:
        self._libc.ptrace(_GET_SYSCALL_INFO, pid, len(self._info), ctypes.cast(self._info, ctypes.c_void_p))
        _kind, architecture, _ip, _sp, number, *arguments = _INFO.unpack_from(self._info)
        name = self._names.get(number, "") if architecture == self._architecture else ""
        return SystemCall(name, tuple(arguments), pid)

    def _kill(self) -> None:
        for pid in self._known:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, _WALL)
                if os.WIFSTOPPED(status):  # a process that was just started
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@cache
def can_trace() -> bool:
    """Return whether this system lets a process trace its child, by trying it."""
    if _architecture() is None:
        return False
    pid = fork()
    if pid == 0:
        worked = False
        try:
            seen: list[str] = []

            def run() -> None:
                os.write(2, b"")
                os._exit(7)

            def see(call: SystemCall) -> bool:
                seen.append(call.name)
                return False

            worked = trace(run, see) == 7 and "write" in seen
        finally:
            os._exit(0 if worked else 1)
    _, status = os.waitpid(pid, 0)
    return status == 0
