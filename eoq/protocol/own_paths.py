"""What a user has closed to itself, by the mode of a file or a folder of its own: how to open it again."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path


def how_to_open(path: Path) -> str | None:
    """Return what opens ``path`` to this user, or None where its mode is not what closes it.

    Of the path and the folders on the way to it, the innermost that can be seen is looked at.
    """
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue  # it is not there, or the folder that it is in may not be entered
        is_folder = stat.S_ISDIR(found.st_mode)
        wanted = 0o700 if is_folder else 0o600
        if found.st_uid != os.geteuid() or found.st_mode & wanted == wanted:
            return None
        return f"give yourself access with `chmod u+{'rwx' if is_folder else 'rw'} {shlex.quote(str(place))}`"
    return None
