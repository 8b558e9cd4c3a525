"""How a command ends: exit code 0, 2 after one line that names the remedy, 130 after Ctrl-C; never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from wsol.errors import InputError
from wsol.log import log

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def run(main: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Call main() and return the command's exit code.

    Args:
        interrupted: logged after Ctrl-C, such as how to continue.

    Errors that are neither the user's nor the machine's (InputError, no memory, no place to write) pass through.
    """
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal without Greek still gets its table
    try:
        main()
        return 0
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        return fail(f"cannot write {error.filename or 'a file'}: {error.strerror}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return fail(f"out of memory ({reason}); try a smaller --batch_size or --crop_size")
    except KeyboardInterrupt:
        log.info(interrupted)
        return 130


def check_early(parse: Callable[[], object]) -> None:
    """Parse the command line before slow imports: --help and mistyped flags are answered at once, and end the process.

    A command calls this in front of its imports of torch and the like, and parses again when it runs.
    """
    code = run(parse)
    if code:
        sys.exit(code)


def fail(message: str) -> int:
    """Print an error as one line and return its exit code, 2."""
    log.debug("stopped by an error", exc_info=True)
    print(f"error: {message}", file=sys.stderr)
    return 2


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, torch's (by name, so that torch need not be imported here), and the C library's, inside torch."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    )
