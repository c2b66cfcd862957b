"""Whether the daemon of another user is the one that is meant. It is loaded only where a daemon is of another user.

A socket in a folder where anybody may put files can be anybody's: whoever is first gets the messages. So each folder on
the way to it must belong to root, to this user or to the user of the daemon, and no other user may put files into it. A
folder such as /tmp, where all may create but only owners remove, is as good, if the next one on the way is root's or
this user's own. /run/eoq, made for the daemon's user, is such a place.
"""

from __future__ import annotations

import os
import stat

MAX_LINKS = 40
"""How many symbolic links may be on the way."""


def is_meant(owner: int) -> bool:
    """Return whether the environment names this user as the one of the daemon, by name or number."""
    named = os.environ.get("EOQ_SOCKET_OWNER", "")
    if not named:
        return False
    if named.isdecimal() and named.isascii():
        return int(named) == owner
    import pwd

    try:
        return pwd.getpwnam(named).pw_uid == owner
    except KeyError:
        return False


def why_not_safe(path: str, owner: int, own: int) -> str | None:
    """Return why another user than ``owner`` and ``own`` could have put a socket at ``path``, or None."""
    trusted = (0, own)
    left = f"{'' if path.startswith('/') else os.getcwd()}/{path}".split("/")  # noqa: PTH109 # plain text
    here, links = "", 0  # a path without symbolic links
    folder = os.lstat("/")
    while left:
        name = left.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            here = here.rpartition("/")[0]
            folder = os.lstat(here or "/")
            continue
        inner = f"{here}/{name}"
        try:
            found = os.lstat(inner)
        except OSError as error:
            return f"{inner} cannot be checked ({error.strerror})"
        open_to_all = folder.st_mode & 0o022
        if open_to_all and not (folder.st_mode & stat.S_ISVTX and found.st_uid in trusted):
            return f"other users may put files into {here or '/'}"
        if found.st_uid not in (*trusted, owner):
            return f"{inner} belongs to the uid {found.st_uid}"
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > MAX_LINKS or found.st_uid not in trusted:
                return f"{inner} is a symbolic link"
            target = os.readlink(inner)  # noqa: PTH115 # plain text
            left = target.split("/") + left
            if target.startswith("/"):
                here, folder = "", os.lstat("/")
        else:
            here, folder = inner, found
    return None
