"""Other sites in the same browser, pages around it and other users of the machine can do nothing with a dashboard.

Each of them knows more than it could: the port, and even the secret path.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from eoq.testing import PrivateDaemon, private_daemon
from tests.dashboard.browser import CHROMIUM, PATIENT, Tab, open_tab
from tests.dashboard.site import Site, running_dashboard
from tests.support import NOBODY, eventually

needs_browser = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
REBOUND: Final = "evil.example"
"""A name whose owner points it to this machine."""
ATTACK: Final = """
(async (home) => {
    const answers = [];
    const tried = async (name, promise) => {
        try {
            const answer = await promise;
            answers.push([name, answer.type, answer.status, await answer.text()]);
        } catch (error) {
            answers.push([name, "error", 0, ""]);
        }
    };
    const loaded = (name, element) => new Promise((then) => {
        element.onload = element.onmessage = () => then([name, "loaded", 0, ""]);
        element.onerror = () => then([name, "error", 0, ""]);
    });
    const drop = JSON.stringify({ do: "drop", name: "mail", ids: ["d-1"], confirmed: true });
    const pause = JSON.stringify({ do: "pause", name: "mail" });
    for (const body of [drop, pause]) {
        for (const type of ["text/plain", "application/json"]) {
            for (const mode of ["cors", "no-cors"]) {
                const options = { method: "POST", mode, credentials: "include", headers: { "content-type": type } };
                await tried("act", fetch(home + "act", { ...options, body }));
            }
        }
    }
    for (const mode of ["cors", "no-cors"]) {
        await tried("read", fetch(home + "messages?queue=mail&state=dead", { mode, credentials: "include" }));
    }
    navigator.sendBeacon(home + "act", new Blob([pause], { type: "text/plain" }));
    const events = new EventSource(home + "events", { withCredentials: true });
    answers.push(await loaded("events", events));
    events.close();
    const script = document.createElement("script");
    script.src = home + "page.js";
    const outcome = loaded("script", script);
    document.head.append(script);
    answers.push(await outcome);
    return answers;
})
"""
"""Tries what a page can try, and returns what it was answered: [what, kind, status, text]."""
FORM: Final = """
<!doctype html><body>
<form method="post" enctype="text/plain" action="ACT" target="TARGET">
<input name='{"do":"pause","name":"mail","x":"' value='"}'>
</form>
<iframe name="inner" src="about:blank"></iframe>
"""


@contextmanager
def _site(text: str) -> Iterator[int]:
    """Serve a page of somebody else. Yield its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=partial(server.serve_forever, 0.05))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    """A daemon with a queue and a dead letter, which nobody here may touch."""
    with private_daemon() as daemon:
        daemon.client.send("mail", "the secret text", id="d-1")
        daemon.client.receive("mail")[0].reject("no such address")
        yield daemon


@pytest.fixture(scope="module")
def site(daemon: PrivateDaemon) -> Iterator[Site]:
    with running_dashboard(daemon.socket) as site:
        yield site


@pytest.fixture(scope="module")
def tab(site: Site) -> Iterator[Tab]:
    """A browser in which the dashboard is open, so that it has the cookie."""
    with open_tab(f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as tab:
        tab.ask("Page.navigate", url=site.url)
        tab.sees("mail")
        # The dashboard itself may do what the others will try, in this browser.
        for do, said in (("pause", "paused"), ("resume", "delivers again")):
            assert said in tab.run(
                f"fetch('act', {{method: 'POST', headers: {{'content-type': 'application/json'}}, "
                f"body: JSON.stringify({{do: '{do}', name: 'mail'}})}}).then(answer => answer.text())"
            )
        yield tab


def _untouched(daemon: PrivateDaemon) -> bool:
    (row,) = (row for row in daemon.client.queues() if row["name"] == "mail")
    return (row["paused"], row["dead"], row["ready"]) == (False, 1, 0)


def _visit(tab: Tab, url: str) -> None:
    """Open a page of somebody else, and wait until it is there."""
    tab.ask("Page.navigate", url=url)
    eventually(lambda: tab.run("location.href + document.readyState") == url + "complete", PATIENT, what=url)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("host", [REBOUND, "127.0.0.1", "localhost"])
def test_a_page_of_another_site_can_neither_act_nor_read(
    tab: Tab, site: Site, daemon: PrivateDaemon, host: str
) -> None:
    """A page of another port of 127.0.0.1 is another origin of the same site, so its requests have the cookie."""
    home = f"http://{site.host}{site.path}"
    with _site("<!doctype html><body>") as port:
        _visit(tab, f"http://{host}:{port}/")
        answers = tab.run(f"{ATTACK}({json.dumps(home)})")
    assert len(answers) == 12
    for name, kind, status, text in answers:
        assert kind in ("error", "opaque") and (status, text) == (0, ""), name
    assert _untouched(daemon)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("target", ["inner", "_self"])
def test_a_form_of_another_site_changes_nothing(tab: Tab, site: Site, daemon: PrivateDaemon, target: str) -> None:
    act = f"http://{site.host}{site.path}act"
    with _site(FORM.replace("ACT", act).replace("TARGET", target)) as port:
        _visit(tab, f"http://127.0.0.1:{port}/")
        tab.run("document.forms[0].submit()")
        if target == "_self":
            tab.sees("the request comes from another site")
        else:
            eventually(lambda: tab.frames() not in ([], ["about:blank"]), PATIENT)
    assert _untouched(daemon)


@needs_browser
@pytest.mark.slow
def test_the_dashboard_is_shown_in_no_frame(tab: Tab, site: Site) -> None:
    home = f"http://{site.host}{site.path}"
    frames = "".join(f'<iframe src="{url}"></iframe>' for url in (home, site.url))
    with _site(f"<!doctype html><body>{frames}<object data='{home}'></object>") as port:
        _visit(tab, f"http://127.0.0.1:{port}/")

        # Chromium puts an error page in the place of a page that may not be in a frame.
        def are_refused() -> bool:
            tree = tab.ask("Page.getFrameTree")["frameTree"]
            return {child["frame"]["url"] for child in tree["childFrames"]} == {"chrome-error://chromewebdata/"}

        eventually(are_refused, PATIENT)


@needs_browser
@pytest.mark.slow
def test_a_name_that_points_here_is_not_served(tab: Tab, site: Site, daemon: PrivateDaemon) -> None:
    """With DNS rebinding, the browser takes the other site for the dashboard's own. Here it even has the token."""
    port = urlsplit(f"http://{site.host}").port
    rebound = f"http://{REBOUND}:{port}"
    tab.ask("Page.navigate", url=rebound + site.url.removeprefix(f"http://{site.host}"))
    tab.sees("this Host is not served")
    # The page of the refusal may run no scripts. That of an attacker may, and is of the same origin for the browser.
    tab.ask("Page.setBypassCSP", enabled=True)
    _visit(tab, f"{rebound}/")
    answers = tab.run(f"{ATTACK}({json.dumps(rebound + site.path)})")
    tab.ask("Page.setBypassCSP", enabled=False)
    assert [answer[:3] for answer in answers[:10]] == [[answer[0], "basic", 403] for answer in answers[:10]]
    assert [answer[1] for answer in answers[10:]] == ["error", "error"]
    assert not any("secret" in answer[3] for answer in answers)
    assert _untouched(daemon)


# ── another user ────────────────────────────────────────────────────────────────────────────────────────────

AS_NOBODY: Final = f"""
import encodings.idna, http.client, json, os, sys
pid, host, secret_path = sys.argv[1:]
os.setgid({NOBODY})
os.setuid({NOBODY})
seen = {{}}
for name in ("cmdline", "environ", "maps"):
    try:
        seen[name] = open(f"/proc/{{pid}}/{{name}}", "rb").read().decode(errors="replace")
    except OSError as error:
        seen[name] = type(error).__name__
def ask(method, path, headers, body=None):
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path, body, headers)
    return connection.getresponse().status
own = {{"Origin": f"http://{{host}}", "Content-Type": "application/json", "Sec-Fetch-Site": "same-origin"}}
body = json.dumps({{"do": "pause", "name": "mail"}})
seen["statuses"] = [
    ask("GET", "/", {{}}),
    ask("GET", "/?token=", {{}}),
    ask("GET", secret_path, own),
    ask("POST", secret_path + "act", own, body),
    ask("POST", "/act", own, body),
    ask("POST", secret_path + "act", {{**own, "Cookie": "eoq-dashboard="}}, body),
]
print(json.dumps(seen))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self/status").exists(), reason="needs root, and /proc")
@pytest.mark.slow
def test_another_user_gets_neither_the_token_nor_in(site: Site, daemon: PrivateDaemon) -> None:
    token = site.url.partition("token=")[2]
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(site.process.pid), site.host, site.path],
        capture_output=True,
        text=True,
        timeout=PATIENT,
        check=True,
        cwd="/",
    )
    seen = json.loads(done.stdout)
    assert "dashboard" in seen["cmdline"]
    for secret in (token, site.cookie.partition("=")[2], site.path.strip("/")):
        assert len(secret) > 20 and secret not in done.stdout
    assert (seen["environ"], seen["maps"]) == ("PermissionError", "PermissionError")
    assert set(seen["statuses"]) == {401}
    assert _untouched(daemon)
