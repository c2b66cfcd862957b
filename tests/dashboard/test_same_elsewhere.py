"""Whatever a person can do in the dashboard, the commands and both Python clients can do as well."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click
import pytest
from starlette.routing import Route

import eoq
from eoq.client.aio import AsyncClient
from eoq.dashboard.actions import Actions
from eoq.dashboard.site import make_site
from eoq.dashboard.watch import Watch

ELSEWHERE: Final = {
    "pause": ("pause", "pause"),
    "resume": ("resume", "resume"),
    "redrive": ("dead redrive", "redrive"),
    "drop": ("dead drop", "drop"),
    "schedule-pause": ("schedule pause", "pause_schedule"),
    "schedule-resume": ("schedule resume", "resume_schedule"),
    "schedule-run": ("schedule run", "run_schedule"),
}
"""For each action that the dashboard knows, the command and the method."""
ASKED_ELSEWHERE: Final = {
    "/messages": ("peek", "peek"),
    "/message": ("show", "show"),
    "/search": ("find", "find"),
    "/schedules": ("schedule list", "schedules"),
    "/events": ("top", "overview"),
}
"""The same for each question that a tab asks."""


@pytest.mark.slow  # it imports all commands
def test_each_action_of_the_dashboard_is_a_command_and_a_method() -> None:
    client = AsyncClient("/nonexistent")
    assert Actions(client)._known.keys() == ELSEWHERE.keys()
    paths = {route.path for route in make_site(client, Watch(client)).routes if isinstance(route, Route)}
    assert paths - {"/", "/page.css", "/page.js", "/act"} == ASKED_ELSEWHERE.keys()
    for command, method in (*ELSEWHERE.values(), *ASKED_ELSEWHERE.values()):
        found: click.Command | None = import_module("eoq.cli.commands").commands
        for word in command.split():
            assert isinstance(found, click.Group)
            found = found.get_command(click.Context(found), word)
        assert found is not None, command
        assert callable(getattr(eoq.Client, method)) and callable(getattr(eoq.AsyncClient, method))
