"""The catalogue of the commands: in which module each is, how the help groups them, and what people call them."""

from __future__ import annotations

from typing import Final

_COMMANDS_OF_MODULE: Final = {
    "daemon": ("daemon", "start", "stop", "status"),
    "send": ("send",),
    "receive": ("receive", "ack", "nack", "reject", "extend"),
    "once": ("once",),
    "relay": ("relay",),
    "bridge": ("forward", "ingest", "bridges"),
    "work": ("work",),
    "apply": ("apply",),
    "queries": ("result", "queues", "peek", "tail", "show", "find"),
    "monitor": ("metrics", "why"),
    "top.command": ("top",),
    "check": ("check",),
    "dashboard": ("dashboard",),
    "admin": ("pause", "resume", "purge", "queue"),
    "steer": ("cancel", "edit"),
    "dead": ("dead",),
    "schedule": ("schedule",),
    "topics": ("bind", "unbind", "topics"),
    "upkeep": ("backup", "restore", "compact", "audit"),
    "moving": ("export", "import"),
    "prove": ("prove",),
    "demo": ("demo",),
    "bench": ("bench",),
    "config": ("config",),
    "shell_init": ("shell-init",),
    "completion": ("completion",),
    "manual": ("man",),
    "service": ("service",),
}
MODULE_OF: Final = {command: module for module, commands in _COMMANDS_OF_MODULE.items() for command in commands}
"""The module of each command. It is imported when the command is used."""
SECTIONS: Final = {
    "The daemon": ("start", "stop", "status", "daemon", "service", "config"),
    "Messages": ("send", "receive", "ack", "nack", "reject", "extend", "result", "once"),
    "Workers": ("work", "apply", "relay", "forward", "ingest", "bridges"),
    "Look": ("queues", "peek", "tail", "show", "find", "why", "metrics", "check", "top", "dashboard"),
    "Steer": (
        *("cancel", "edit", "pause", "resume", "purge", "queue", "dead", "schedule"),
        *("bind", "unbind", "topics"),
    ),
    "Keep": ("backup", "restore", "compact", "export", "import", "audit"),
    "Try": ("demo", "prove", "bench"),
    "At home": ("completion", "man", "shell-init"),
}
"""The commands as the help lists them. It lists all others under "More"."""
MEANT: Final = {
    "enqueue": "send",
    "publish": "send",
    "push": "send",
    "put": "send",
    "pop": "receive",
    "get": "receive",
    "pull": "receive",
    "consume": "work",
    "done": "ack",
    "requeue": "nack",
    "list": "queues",
    "ls": "queues",
    "stats": "status",
    "info": "status",
    "restart": "start",
    "serve": "daemon",
    "web": "dashboard",
    "ui": "dashboard",
    "install": "service install",
    "redrive": "dead redrive",
    "drop": "dead drop",
    "dlq": "dead",
    "delete": "queue delete",
    "follow": "tail",
    "search": "find",
    "cron": "schedule",
    "vacuum": "compact",
    "dump": "export",
    "load": "import",
    "help": "--help",
    "version": "--version",
}
"""What people type who know other queues, and what they mean."""
