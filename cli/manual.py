"""``eoq man``: manual pages, made from the commands."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from eoq import __version__
from eoq.errors import Forbidden, NotFound

SECTION = "1"
STATUSES = (
    ("0", "done"),
    ("1", "nothing there: no message, no result"),
    ("2", "wrong usage"),
    ("65", "bad data: too large, id_conflict, lease_lost"),
    ("69", "the daemon cannot be reached"),
    ("70", "eoq failed inside"),
    ("74", "standard input or output failed"),
    ("75", "try again later: the queue or the disk is full, the file is in use"),
    ("77", "not allowed"),
    ("130", "interrupted by Ctrl-C"),
)


@click.command()
@click.argument("words", nargs=-1, metavar="[COMMAND]…")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the pages of all commands into this folder, and print their names.",
)
@click.pass_context
def man(ctx: click.Context, words: tuple[str, ...], folder: Path | None) -> None:
    """Print the manual page of eoq, or of a command.

    \b
    eoq man send | man -l -                                        # or: | mandoc -a
    eoq man dead redrive | man -l -
    eoq man --dir ~/.local/share/man/man1 && man eoq-send
    """
    root = ctx.find_root()
    if folder is None:
        click.echo("\n".join(_page(_find(root, words))))
        return
    if words:
        raise click.UsageError("give a COMMAND or --dir, not both: --dir writes the pages of all commands")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for context in _all(root):
            file = folder / f"{_name(context)}.{SECTION}"
            file.write_text("\n".join(_page(context)) + "\n", encoding="utf-8")
            click.echo(file)
    except OSError as error:
        raise Forbidden(f"the pages cannot be written to {folder}: {error.strerror}; name another folder") from error


def _find(context: click.Context, words: tuple[str, ...]) -> click.Context:
    """Return the command of these words. Raises `NotFound`."""
    for word in words:
        group = context.command
        found = group.get_command(context, word) if isinstance(group, click.Group) else None
        if found is None:
            raise NotFound(f"there is no command {' '.join(words)!r}; `eoq --help` lists the commands")
        context = click.Context(found, context, info_name=word)
    return context


def _all(context: click.Context) -> Iterator[click.Context]:
    """Yield a command and all that are in it."""
    yield context
    group = context.command
    if isinstance(group, click.Group):
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _all(click.Context(found, context, info_name=name))


def _name(context: click.Context) -> str:
    """Return the name of a page: ``eoq-dead-list``."""
    return context.command_path.replace(" ", "-") if context.parent is not None else "eoq"


def _page(context: click.Context) -> list[str]:
    """Return the lines of a page, in the language of man(7)."""
    command = context.command
    name = _name(context)
    help = inspect.cleandoc(command.help or "")
    lines = [f'.TH "{name.upper()}" "{SECTION}" "" "eoq {__version__}" "eoq"', ".SH NAME"]
    lines += [f"{_text(name)} \\- {_text(command.get_short_help_str(1000).rstrip('.'))}", ".SH SYNOPSIS"]
    usage = " ".join(command.collect_usage_pieces(context))
    lines += [
        f"\\fB{_text(name.replace('-', ' ') if context.parent is None else context.command_path)}\\fR {_text(usage)}"
    ]
    lines += [".SH DESCRIPTION", *_paragraphs(help)]
    params = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    options = [record for param in params if (record := param.get_help_record(context))]
    if options:
        lines.append(".SH OPTIONS")
        for names, text in options:
            lines += [".TP", f"\\fB{_text(names)}\\fR", _text(text)]
    if isinstance(command, click.Group):
        lines.append(".SH COMMANDS")
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            if found is not None and not found.hidden:
                lines += [".TP", f"\\fB{_text(inner)}\\fR", _text(found.get_short_help_str(1000))]
    if context.parent is None:
        lines.append(".SH EXIT STATUS")
        for status, meaning in STATUSES:
            lines += [".TP", status, _text(meaning)]
        lines += [".SH ENVIRONMENT", ".TP", "EOQ_SOCKET", "The socket of the daemon."]
        lines += [".TP", "EOQ_DB, EOQ_SPOOL, EOQ_CONFIG", "The file, the spool and the configuration of the daemon."]
        lines += [".TP", "EOQ_SOCKET_OWNER", "Another user whose daemon is meant."]
    else:
        parent = _name(context.parent)
        lines += [".SH SEE ALSO", f"\\fB{_text(parent)}\\fR({SECTION})"]
    return lines


def _paragraphs(help: str) -> Iterator[str]:
    """Yield the paragraphs of a help text. Those that begin with a backspace keep their lines: examples."""
    for paragraph in help.split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield from (".PP", ".nf", ".RS 4")
            yield from (_text(line) for line in paragraph[2:].split("\n"))
            yield from (".RE", ".fi")
        else:
            yield ".PP"
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Return plain text as man(7) reads it: no word of it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text
