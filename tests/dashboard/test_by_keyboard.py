"""The dashboard without a mouse: every step with keys, the focus always seen, every text readable in both themes."""

from __future__ import annotations

import json

import pytest

from eoq.testing import private_daemon
from tests.dashboard.browser import CHROMIUM, PATIENT, Tab, open_tab
from tests.dashboard.site import running_dashboard
from tests.support import eventually

NAME = "(document.activeElement.ariaLabel || document.activeElement.textContent || '').trim()"
RATIOS = """
(() => {
    const light = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [r, g, b] = parts.map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        const colour = getComputedStyle(element).backgroundColor;
        return /^rgba.*, 0\\)$/.test(colour) && element.parentElement ? behind(element.parentElement) : colour;
    };
    const seen = [...document.querySelectorAll("a, h1, h2, p, td, th, label, button, span, footer, input, strong")]
        .filter((element) => element.offsetParent && element.textContent.trim() && !element.disabled);
    return seen.map((element) => {
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
        return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML.slice(0, 90)];
    });
})()
"""
"""The contrast of each text with what is behind it."""


def _go_to(tab: Tab, name: str) -> None:
    """Press Tab until what has this name has the focus, and see it."""
    eventually(lambda: tab.run(f"document.body.innerHTML.includes({json.dumps(name)})"), PATIENT, what=name)
    tab.press_until("Tab", f"{NAME} === {json.dumps(name)}")
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") != "none", f"the focus on {name} is unseen"


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_person_without_a_mouse_does_everything() -> None:
    with private_daemon() as daemon, running_dashboard(daemon.socket) as site, open_tab() as tab:
        client = daemon.client
        client.schedule("nightly", "reports", "x", cron="0 3 * * *")
        for id in ("d-1", "d-2"):
            client.send("mail", "x", id=id)
            client.receive("mail")[0].reject("no such address")
        tab.ask("Page.navigate", url=site.url)
        tab.sees("mail")
        # A queue is paused and resumed. The focus stays on its button, although the row is drawn anew.
        _go_to(tab, "Pause mail")
        tab.press("Enter")
        tab.sees("The queue mail is paused.")
        eventually(lambda: tab.run(NAME) == "Resume mail", PATIENT)
        tab.press("Enter")
        tab.sees("The queue mail delivers again.")
        # Charts are drawn while one looks.
        eventually(lambda: tab.run("document.querySelectorAll('figure polyline').length") == 6, PATIENT)
        # The queue, its dead letters, and a question that Escape answers with no.
        _go_to(tab, "mail")
        tab.press("Enter")
        eventually(lambda: tab.run("document.activeElement.id") == "main", PATIENT, what="the focus is in the new page")
        tab.run("location.hash += '?state=dead'")
        _go_to(tab, "Drop d-1")
        tab.press("Enter")
        eventually(lambda: tab.run("document.activeElement.id") == "no", PATIENT)
        tab.press("Escape")
        eventually(lambda: not tab.run("document.getElementById('ask').open"), PATIENT)
        assert set(daemon.dead_letters("mail")) == {"d-1", "d-2"}
        _go_to(tab, "Drop d-1")
        tab.press("Enter")
        eventually(lambda: tab.run("document.activeElement.id") == "no", PATIENT)
        tab.press("Tab")
        assert tab.run("document.activeElement.id") == "yes", "no key leads out of the question"
        tab.press("Enter")
        tab.sees("Dropped: 1.")
        eventually(lambda: not tab.run("document.body.innerText.includes('d-1')"), PATIENT, what="the list without it")
        _go_to(tab, "Redrive d-2")
        tab.press("Enter")
        tab.sees("Redriven: 1.")
        assert daemon.dead_letters("mail") == {}
        # Search, the life of a message, and schedules.
        tab.run("document.activeElement.blur()")
        tab.press("/", "/")
        tab.ask("Input.insertText", text="d-2")
        tab.press("Enter")
        _go_to(tab, "d-2")
        tab.press("Enter")
        tab.sees("no such address")
        _go_to(tab, "Schedules")
        tab.press("Enter")
        for name, said in (
            ("Pause", "The schedule nightly is paused"),
            ("Resume", "goes on"),
            ("Run", "has sent"),
        ):
            _go_to(tab, f"{name} nightly" + (" now" if name == "Run" else ""))
            tab.press("Enter")
            tab.sees(said)
            eventually(
                lambda: tab.run("main.contains(document.activeElement)"), PATIENT, what="the focus stays in the page"
            )
        assert client.receive("reports"), "it was run"
        assert tab.errors == []


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_every_text_is_readable_in_light_and_dark() -> None:
    with private_daemon() as daemon, running_dashboard(daemon.socket) as site, open_tab() as tab:
        client = daemon.client
        client.schedule("nightly", "reports", "x", cron="0 3 * * *")
        client.send("mail", "x", id="d-1")
        client.receive("mail")[0].reject("no such address")
        client.send("mail", "x", id="m-1", delay=60)
        client.pause("mail")
        tab.ask("Page.navigate", url=site.url)
        for theme in ("light", "dark"):
            tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
            for page, text in (
                ("#/", "mail"),
                ("#/queue/mail?state=dead", "no such address"),
                ("#/message/mail/d-1", "it is a dead letter"),
                ("#/schedules", "nightly"),
            ):
                tab.run(f"location.hash = '{page}'")
                tab.sees(text)
                ratios = tab.run(RATIOS)
                assert len(ratios) > 8, page
                assert [found for found in ratios if found[0] < 4.5] == [], f"{theme}, {page}"
