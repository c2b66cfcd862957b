"""The dashboard in a real browser, through its whole flow."""

from __future__ import annotations

from pathlib import Path

import pytest

from eoq.testing import private_daemon
from tests.dashboard.browser import CHROMIUM, PATIENT, Tab, open_tab
from tests.dashboard.site import running_dashboard
from tests.support import eventually

EVIL = "<img src=x onerror='document.title=1'><script>document.title=1</script>"


def _click(tab: Tab, label: str) -> None:
    """Click the button or link with a label."""
    found = f"[...document.querySelectorAll('button, a')].find(e => (e.ariaLabel || e.textContent) === {label!r})"
    eventually(lambda: tab.run(f"!!({found}) && !({found}).disabled"), PATIENT, what=label)
    tab.run(f"({found}).click()")


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_a_person_looks_searches_and_steers(tmp_path: Path) -> None:
    with private_daemon() as daemon, running_dashboard(daemon.socket) as site, open_tab() as tab:
        client = daemon.client
        client.schedule("nightly", "reports", "x", cron="0 3 * * *")
        for id in ("d-1", "d-2"):
            client.send("mail", EVIL, id=id)
            client.receive("mail")[0].reject(f"no account {EVIL}")
        tab.ask("Page.navigate", url=site.url)
        tab.sees("mail")
        assert "token" not in tab.run("location.href")
        # Live: a message that is sent now appears, and pausing shows at once.
        client.send("orders", "x", id="o-1")
        tab.sees("orders")
        _click(tab, "Pause orders")
        tab.sees("The queue orders is paused.")
        _click(tab, "Resume orders")
        tab.sees("The queue orders delivers again.")
        # By keyboard: the key / and an id lead to the message.
        tab.press("/", "/")
        assert tab.run("document.activeElement.name") == "id"
        tab.ask("Input.insertText", text="d-1")
        tab.press("Enter", "\r")
        tab.sees("mail")
        _click(tab, "d-1")
        tab.sees("it is a dead letter")
        tab.sees(EVIL)
        assert tab.run("document.querySelectorAll('main img, main script').length") == 0
        # Dead letters: one is redriven, one is dropped after a question.
        tab.run("location.hash = '#/queue/mail?state=dead'")
        _click(tab, "Redrive d-1")
        tab.sees("Redriven: 1.")
        _click(tab, "Drop d-2")
        tab.sees("This cannot be undone.")
        eventually(lambda: tab.run("document.activeElement.id") == "no", PATIENT)
        assert set(daemon.dead_letters("mail")) == {"d-2"}
        _click(tab, "Drop")
        tab.sees("Dropped: 1.")
        assert not daemon.dead_letters("mail")
        tab.run("location.hash = '#/schedules'")
        _click(tab, "Run nightly now")
        tab.sees("has sent")
        # Dark, and on a narrow screen nothing is wider than it.
        light = tab.run("getComputedStyle(document.body).backgroundColor")
        tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        assert tab.run("getComputedStyle(document.body).backgroundColor") != light
        tab.ask("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True)
        for page in ("#/", "#/queue/mail?state=ready", "#/message/mail/d-1", "#/schedules"):
            tab.run(f"location.hash = '{page}'")
            tab.sees("mail" if "mail" in page or page == "#/" else "nightly")
            assert tab.run("document.documentElement.scrollWidth") <= 360, page
        daemon.stop()
        tab.sees("The daemon does not answer")
        daemon.start()
        eventually(lambda: tab.run("document.getElementById('trouble').hidden"), PATIENT)
        assert tab.errors == []
        assert tab.run("document.title") != "1"
