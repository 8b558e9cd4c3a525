"""How a command ends: exit code 0, 2 behind one line that says what to do, 130 for Ctrl-C; a traceback is a defect."""

import errno
import sys
from collections.abc import Callable

import torch

from wsol.errors import InputError
from wsol.log import log

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def run(main: Callable[[], object], interrupted: str = "stopped") -> int:
    """Call main() and return the command's exit code.

    Args:
        interrupted: what is logged after Ctrl-C, such as how to go on.

    Errors that are neither the user's nor the machine's (InputError, no memory, no place to write) pass through.
    """
    sys.stdout.reconfigure(errors="replace")  # a terminal without Greek still gets its table
    try:
        main()
        return 0
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        return fail(f"cannot write {error.filename or 'a file'}: {error.strerror}")
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return fail(f"out of memory ({reason}); try a smaller --batch_size or --crop_size")
    except KeyboardInterrupt:
        log.info(interrupted)
        return 130


def fail(message: str) -> int:
    """Print the one line of an error; returns its exit code, 2."""
    log.debug("stopped by an error", exc_info=True)
    print(f"error: {message}", file=sys.stderr)
    return 2
