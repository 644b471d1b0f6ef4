"""What all that listen share: a Unix socket for one user, and the error for an address that cannot be had."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from hopaas_p2p.errors import ConfigurationError


def cannot_listen(where: str, error: OSError) -> ConfigurationError:
    """The error for an address that is in use, belongs to another machine, or needs more rights."""
    own = error.errno and not isinstance(error, socket.gaierror)  # without the words that event loops put around it
    why = os.strerror(error.errno or 0) if own else error.strerror or error
    return ConfigurationError(f"cannot listen on {where}: {why}")


@contextlib.contextmanager
def private_socket(path: Path) -> Iterator[None]:
    """Put this around the binding of a Unix socket, so that only processes of this user can connect to it.

    Removes the socket that an earlier process left at `path`, and nothing else.

    Raises:
        ConfigurationError: something else is at this path, or the socket cannot be made.

    """
    before = os.umask(0o177)
    try:
        if path.is_socket():
            path.unlink()
        yield
    except OSError as error:
        raise cannot_listen(str(path), error) from None
    finally:
        os.umask(before)
