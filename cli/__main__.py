"""``python -m eoq.cli``: the same program as ``eoq``."""

from . import main

if __name__ == "__main__":
    main(prog_name="eoq")
