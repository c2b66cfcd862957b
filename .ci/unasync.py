"""Write the blocking half of the library from its asyncio half, where the two are the same by nature.

    python .ci/unasync.py            # write the blocking files
    python .ci/unasync.py --check    # change nothing; fail where one differs from what its source makes

It needs ruff, which removes unused imports and formats. A file is made by replacing words: ``Async`` before a name,
``aio_`` before a file name, ``async`` and ``await`` are removed. So the docstrings of the source must hold for both.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parent.parent / "eoq"
FILES: Final = {
    "inbox/rules/aio_settling.py": "inbox/rules/settling.py",
    "postgres/aio_transaction.py": "postgres/transaction.py",
    "postgres/aio_inbox.py": "postgres/inbox.py",
    "postgres/aio_guest.py": "postgres/guest.py",
    "postgres/aio_outbox.py": "postgres/outbox.py",
    "transport/aio_leases.py": "transport/leases.py",
    "worker/aio_handlers.py": "worker/handlers.py",
    "client/aio_admin.py": "client/admin.py",
    "client/aio_consume.py": "client/consume.py",
    "client/aio_once.py": "client/once.py",
    "client/aio_transaction.py": "client/transaction.py",
    "client/aio.py": "client/blocking.py",
    "testing/aio_drain.py": "testing/drain.py",
}
HEADER: Final = "# Made from {source} by .ci/unasync.py. Change that file, then run the script.\n"

_NESTED = r"((?:[^\[\]]|\[(?:[^\[\]]|\[[^\[\]]*\])*\])*)"
REPLACEMENTS: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Sentences that differ.
        (r"An asyncio client, for the tasks of one event loop\.", "A blocking client, safe to share between threads."),
        (r"\b(T|t)he asyncio client:", r"\1he blocking client:"),
        (r"\ban asyncio client of\b", "a blocking client of"),
        # The language.
        (r"(?m)\bawait complete\((.+)\)(?=$|  #)", r"\1"),
        (r"\basync (def|with|for)\b", r"\1"),
        (r"\bawait ", ""),
        (r"\b__a(enter|exit)__", r"__\1__"),
        (r"\b(Abstract)Async(ContextManager)\b", r"\1\2"),
        (r"\basynccontextmanager\b", "contextmanager"),
        (rf"\bAwaitable\[{_NESTED}\]", r"\1"),
        # Names.
        (r"\bAsync(?=[A-Z])", ""),
        (r"\bconnect_async\b", "connect"),
        (r"\bgive_back_async\b", "give_back"),
        (r"\basync_owner\b", "owner"),
        (r"\baio_(?=\w)", ""),
        (r"\.aio\b", ".blocking"),
        # The standard library. Ruff removes imports that are then unused.
        (r"\bimport asyncio\b", "import threading\nimport time"),
        (r"\basyncio\.Lock\b", "threading.Lock"),
        (r"\basyncio\.Event\b", "threading.Event"),
        (r"\basyncio\.sleep\b", "time.sleep"),
    )
)


def blocking(source: Path, target: Path) -> str:
    """Return the text of ``target``, made from ``source``."""
    text = source.read_text()
    for pattern, replacement in REPLACEMENTS:
        text = pattern.sub(replacement, text)
    name = ("--stdin-filename", str(target), "-")
    text = _ruff(text, "check", "--quiet", "--fix", "--unsafe-fixes", "--select", "F401,I,C416,UP028", *name)
    return HEADER.format(source=source.name) + _ruff(text, "format", "--quiet", *name)


def _ruff(text: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    if done.returncode:
        sys.exit(f"ruff cannot read what {arguments[-2]} is made of:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    for source, target in FILES.items():
        path = PACKAGE / target
        text = blocking(PACKAGE / source, path)
        if path.exists() and path.read_text() == text:
            continue
        if check:
            sys.exit(f"eoq/{target} differs from what eoq/{source} makes: run `python .ci/unasync.py`, and commit both")
        path.write_text(text)
        print(f"eoq/{target}")


if __name__ == "__main__":
    main()
