"""How a command ends: exit code 0; 2 after one line that names the remedy; 130 or 143 after Ctrl-C or SIGTERM.

A traceback, by contrast, is always a defect of the program. A command calls `check_early` before its slow imports and
`run` to do its work; from the first of these on, a signal ends it within SECONDS_TO_END (training first finishes its
step), with one line and without leaving a process behind.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from wsol import distributed
from wsol.errors import InputError
from wsol.log import log

SECONDS_TO_END = 8.0
SECONDS_FOR_A_STEP = 10.0  # that come before, where a block finishes what it is in the middle of
_SECONDS_BEFORE_INSISTING = 3.0
_SECONDS_OF_AN_IMPORT = 0.1
_NOTHING_KEPT = "nothing was written"
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM)
_NOT_OF_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # names of files may have line ends in them
_OTHERS_GONE = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
_SECONDS_FOR_MAIN = 3.0  # in which the main process says the same, and its launcher ends the others
_SHARED_MEMORY = ("shared memory", "(shm)", "unable to write to file </torch", "Bus error")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, raised in the main thread."""


class _State:
    """What signals have done to this process."""

    listening = False  # signals are ours: this is a command, not a test or another program that calls its main()
    working = False  # `run` is there to catch Interrupted
    received: int | None = None
    raised = False
    ending = False
    patient = False  # a block of `finishing` looks for signals itself
    advice = _NOTHING_KEPT


def run(main: Callable[[], object]) -> int:
    """Call main() and return the command's exit code, main's own if it returns one.

    Errors that are the program's own pass through.
    """
    code = _run(main, tidy=True)
    if _State.listening:  # all is done; the interpreter's own end would answer a signal by its default
        _answer_with(signal.SIG_IGN)
    return code


def _run(main: Callable[[], object], tidy: bool) -> int:
    if sys.stdout is None:  # closed by the shell (>&-): the next file to be opened would receive what is printed
        return fail("standard output is closed; redirect it to a file or to /dev/null")
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without Greek still gets its table
    if not distributed.is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        _State.working = tidy
        code = _exit_code(main)
        if _State.received is not None:  # in an import that was the last of the work, or swallowed by a library
            return _end(_State.received)
        return code or _flushed()
    except KeyboardInterrupt:
        return _end(_State.received or signal.SIGINT)
    except BaseException:
        # torch raises an error of its own if a worker ends before the signal is seen here.
        if _State.received is None:
            raise
        return _end(_State.received)
    finally:
        _State.working = False


def _exit_code(main: Callable[[], object]) -> int:
    try:
        code = main()
        return code if isinstance(code, int) else 0
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno in (*_NOT_WRITABLE, errno.EPIPE) and not error.filename:  # every file of ours is named
            return _output_failed(error)
        if error.errno in _NOT_ALLOWED:
            return fail(f"no permission for {error.filename or 'a file'}: {error.strerror}")
        if error.errno in _NOT_WRITABLE:
            return fail(f"cannot write {error.filename}: {error.strerror}")
        if not error.filename:
            raise
        return fail(f"{error.filename}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if any(words in str(error) for words in _SHARED_MEMORY):
            return fail(
                f"the data loading processes need more shared memory than /dev/shm has ({reason}); enlarge it, or "
                "give --workers 0"
            )
        if distributed.is_launched() and any(words in str(error) for words in _OTHERS_GONE):
            return fail(f"another process of this run has ended, see its own message ({reason}); {_State.advice}")
        if not _is_out_of_memory(error):
            raise
        return fail(f"out of memory ({reason}); try a smaller --batch_size or --crop_size")


def _flushed() -> int:
    """0 once everything printed has left; otherwise 2, after a line that says why it could not."""
    try:
        sys.stdout.flush()
        return 0
    except OSError as error:
        return _output_failed(error)


def _output_failed(error: OSError) -> int:
    # Otherwise the interpreter tries again at its end, and complains in its own words.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return fail(f"cannot write to standard output: {error.strerror}; redirect it to a file")


def check_early(parse: Callable[[], object]) -> None:
    """Parse the command line before slow imports: --help and mistyped flags are answered at once, and end the process.

    A command calls this in front of its imports of torch and the like, and parses again when it runs. From here on,
    signals are answered as the module says.
    """
    _listen()
    code = _run(parse, tidy=False)
    if code:
        sys.exit(code)


def fail(message: str) -> int:
    """Print an error as one line and return its exit code, 2.

    Of several processes, the main one is first: the others mostly end by the same error.
    """
    log.debug("stopped by an error", exc_info=True)
    if not distributed.is_main():
        time.sleep(_SECONDS_FOR_MAIN)
        message = f"process {distributed.rank()}: {message}"
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(f"error: {_NOT_OF_A_LINE.sub(_escaped, message)}", file=sys.stderr, flush=True)
    return 2


def _escaped(character: re.Match[str]) -> str:
    return repr(character[0])[1:-1]


# --------------------------------------------------------------------------- signals


def when_interrupted(advice: str) -> None:
    """From now on, say this after a signal: what is kept, and how to go on."""
    _State.advice = advice


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Inside, a signal raises nothing for up to SECONDS_FOR_A_STEP; the block asks `stop_requested` between its steps.

    A second signal is answered at once.
    """
    _State.patient = _State.working and _State.received is None
    try:
        yield
    finally:
        _State.patient = False
        stop_if_requested()


def stop_requested() -> bool:
    """Whether a signal has come."""
    return _State.received is not None


def stop() -> None:
    """Raise Interrupted, as if a signal had come: it has, to another process of this run."""
    _State.received = _State.received or signal.SIGTERM
    stop_if_requested()


def stop_if_requested() -> None:
    """Raise Interrupted if a signal has come."""
    if _State.received is not None and not _State.ending:
        _State.patient, _State.raised = False, True
        raise Interrupted


def _listen() -> None:
    """Answer SIGINT and SIGTERM, and keep libraries from printing what they make of them."""
    owner = os.getpid()

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data loading process that was forked a moment ago
            os._exit(128 + number)
        if not _State.working:  # nothing was begun that would have to be tidied up
            _end(number)
        if _State.ending:
            return
        again = _State.received is not None
        if not again:
            _State.received = number
            # Not threading.Thread: the signal may have come while the main thread holds one of its locks.
            _thread.start_new_thread(_insist, (number,))
        if _State.patient and not again:
            # SIGTERM to a process group ends data loading processes, too; torch would answer that by raising.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return
        if not _is_importing(frame):
            _State.raised = True
            raise Interrupted

    _answer_with(answer)
    _State.listening = True
    for module, hook in ((sys, "unraisablehook"), (threading, "excepthook")):
        setattr(module, hook, _unless_interrupted(getattr(module, hook)))


def _answer_with(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _unless_interrupted(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda details: None if _State.received is not None else hook(details)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether an exception would now end an import, in which compiled modules (torch's) abort the process."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _insist(number: int) -> None:
    """Raise once imports are done, again if a library swallowed it or tidying up takes too long; then just end."""
    patience = time.monotonic() + SECONDS_FOR_A_STEP
    while _State.patient and time.monotonic() < patience:
        time.sleep(_SECONDS_OF_AN_IMPORT)
    end = time.monotonic() + SECONDS_TO_END
    pause = _SECONDS_BEFORE_INSISTING
    while time.monotonic() < end:
        time.sleep(pause if _State.raised else _SECONDS_OF_AN_IMPORT)
        if _State.raised:
            pause = 1.0
        if not _State.ending:
            _thread.interrupt_main(signal.Signals(number))
    _end(number)


def _end(number: int) -> int:
    """End the process after a signal, with its children; where signals are not ours, return the exit code."""
    if not _State.ending:
        _State.ending = True
        if _State.listening and threading.current_thread() is threading.main_thread():
            _answer_with(signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises when a worker ends
        line = f"interrupted; {_State.advice}"
        if not distributed.is_main():
            pass  # the main process says it
        elif log.handlers and _State.working and threading.current_thread() is threading.main_thread():
            log.info(line)
        else:  # what the main thread is in the middle of may hold the locks of print and log
            with contextlib.suppress(OSError):
                os.write(1, f"{line}\n".encode())
    if not _State.listening:
        _State.ending = False
        return 128 + number
    for child in _forked_processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(128 + number)


def _forked_processes() -> set[int]:
    """Processes that this one forked: data loading processes, also one of which multiprocessing does not know yet.

    They have our command line, unlike programs such as that of W&B, which ends on its own once it has written all.
    """
    known = {child.pid for child in multiprocessing.active_children() if child.pid is not None}
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cmdline").read_bytes()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == os.getpid() and (folder / "cmdline").read_bytes() == own:
                    known.add(int(folder.name))
    return known


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, torch's (by name, so that torch need not be imported here), and the C library's, inside torch."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
