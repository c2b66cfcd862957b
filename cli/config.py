"""The configuration file: ``config check`` and ``config show``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from eoq.errors import EoqError, InvalidRequest, NotFound
from eoq.protocol.paths import config_path
from eoq.protocol.validation import check_queue

from .common import print_json, visible
from .daemon_options import config_option, daemon_options, from_cli
from .groups import Group
from .options import complete_queue, json_option
from .table import print_table

FREE = "5 % of the disk, 64 MiB at most"


@click.group(cls=Group)
def config() -> None:
    """Check the configuration file, and print each setting and its source.

    \b
    eoq config check eoq.toml
    eoq config show mail.welcome
    """


@config.command()
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@config_option
@json_option
@click.pass_context
def check(ctx: click.Context, /, file: Path | None, as_json: bool, **_options: object) -> None:
    """Check FILE, and print everything that is wrong with it. Exit status 65 if it is wrong, 1 without a file.

    Without FILE, check the file that `eoq daemon` would read. A running daemon does this check itself before it uses
    anything of a changed file.

    \b
    eoq config check eoq.toml && kill -HUP "$(eoq status --json | jq .pid)"
    """
    from eoq.daemon.config.loader import load
    from eoq.daemon.config.problems import WrongConfig
    from eoq.daemon.config.resolve import resolve_config_path

    path = file or resolve_config_path(from_cli(ctx)).value
    if path is None:
        default = config_path() or "of this user, who has no home folder (HOME)"
        raise NotFound(f"there is no configuration {default}; name a file, or set EOQ_CONFIG")
    try:
        loaded = load(path)
    except EoqError as error:
        if as_json:
            problems = error.problems if isinstance(error, WrongConfig) else [("", str(error))]
            errors = [{"place": place, "error": text} for place, text in problems]
            print_json({"file": str(path), "ok": False, "errors": errors})
            sys.exit(error.exit_status)
        raise
    if as_json:
        print_json({"file": str(path), "ok": True, "errors": []})
    else:
        counts = {
            "sections of queues": loaded.queues,
            "relays": loaded.relay,
            "forwards": loaded.forward,
            "ingests": loaded.ingest,
            "bindings": loaded.bind,
            "schedules": loaded.schedule,
        }
        contents = ", ".join(f"{what}: {len(entries)}" for what, entries in counts.items() if entries)
        click.echo(f"{visible(str(path))} is right" + (f" ({contents})" if contents else ""))


@config.command()
@click.argument("queue", required=False, shell_complete=complete_queue)
@daemon_options
@json_option
@click.pass_context
def show(ctx: click.Context, /, queue: str | None, as_json: bool, **_options: object) -> None:
    """Print each setting with its value and its source: flag, variable, file or default.

    With QUEUE, print the settings of that queue. These are the values that `eoq daemon` with the same options would
    start with now. `eoq status` says when a running daemon has read its file, and whether the file is wrong now.

    \b
    eoq config show
    eoq config show mail.welcome --config eoq.toml
    eoq config show mail.welcome --json | jq 'select(.setting == "retention") | .value'
    """
    from eoq.daemon.config.resolve import resolve

    if queue is not None:
        try:
            check_queue(queue)
        except InvalidRequest as error:
            raise click.BadParameter(str(error), ctx) from error
    resolved = resolve(from_cli(ctx))
    if queue is None:
        settings = [*resolved.of_daemon(), *resolved.of_queues(), *resolved.of_lists()]
    else:
        settings = [*resolved.of_queue(queue)]
    if as_json:
        for setting in settings:
            value = str(setting.value) if isinstance(setting.value, Path) else setting.value
            print_json({"setting": setting.name, "value": value, "source": setting.source})
    else:
        rows = [[setting.name, visible(_text(*setting[:2])), visible(setting.source)] for setting in settings]
        print_table(("setting", "value", "from"), rows)


def _text(name: str, value: Any) -> str:
    if value is None:
        return FREE if name == "storage.min_free_bytes" else "none"
    if isinstance(value, float):
        return f"{value:.15g}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
