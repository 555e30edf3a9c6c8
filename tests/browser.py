"""A real Chromium, driven over its DevTools protocol. Without one on this host the tests that need it are skipped."""

import base64
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.system.running_daemon import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this host: apt-get install chromium")
LIMIT_S = 60.0
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}
AIM = """(name, where) => {
  const find = () => [...document.querySelectorAll(where)].find((button) =>
    (button.getAttribute('aria-label') ?? button.textContent).trim() === name
    && !button.hidden && !button.disabled && button.offsetParent);
  const aimed = window.aimed = { isHit: false, place() {
    const button = find();
    if (!button) return null;
    button.scrollIntoView({ block: 'center' });
    const box = button.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  } };
  const guard = new AbortController();
  document.addEventListener('click', (event) => {
    const button = find();
    if (button && button.contains(event.target)) { aimed.isHit = true; guard.abort(); return; }
    event.preventDefault();
    event.stopImmediatePropagation();
  }, { capture: true, signal: guard.signal });
}"""
"""What is clicked from now on reaches that button or nothing."""

_MOVED = "Inspected target navigated"


class LoadedAnewError(Exception):
    """Another page came while this one was asked."""


class Tab:
    """One page. `trouble`: what its scripts threw and its policy refused; `asked`: the URLs that it asked for."""

    def __init__(self, line: ClientConnection) -> None:
        self._line = line
        self._number = 0
        self.trouble: list[str] = []
        self.asked: list[str] = []
        for part in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{part}.enable")

    def call(self, method: str, **about: Any) -> dict[str, Any]:
        """One command of the protocol."""
        self._number += 1
        self._line.send(json.dumps({"id": self._number, "method": method, "params": about}))
        while True:
            message = json.loads(self._line.recv(LIMIT_S))
            if message.get("id") == self._number:
                if "error" in message:
                    error = message["error"]
                    raise LoadedAnewError(method) if _MOVED in error["message"] else AssertionError((method, error))
                return dict(message["result"])
            self._heard(message.get("method", ""), message.get("params", {}))

    def _heard(self, method: str, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.trouble.append(str(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            # what the network says is told by who asked
            if about["entry"]["source"] != "network":
                self.trouble.append(str(about["entry"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(about["request"]["url"])

    def go(self, url: str) -> None:
        """Load another page, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, limit_s: float = LIMIT_S) -> Any:
        """The first true value of an expression in the page, which may be loaded anew meanwhile."""

        def found() -> Any:
            try:
                return self.run(script)
            except LoadedAnewError:
                return None

        try:
            return eventually(found, limit_s, every_s=0.05)
        except AssertionError as error:
            shown = self.run("document.body.innerText")
            raise AssertionError(f"never so: {script}\n{shown}\n{self.trouble}") from error

    def shows(self, text: str, where: str = "main", limit_s: float = LIMIT_S) -> None:
        """Wait until a part of the page has this text."""
        part = f"document.querySelector({json.dumps(where)})"
        self.wait(f"{part} && {part}.innerText.includes({json.dumps(text)})", limit_s)

    def click(self, name: str, where: str = "body") -> None:
        """Press the visible button of that name (label, else text) with the mouse.

        The page may move under the mouse, as under anybody's: what comes to another part of it is kept from it, and pressed anew.
        """
        self.run(f"({AIM})({json.dumps(name)}, {json.dumps(where + ' button')})")
        self.wait("window.aimed.place()")

        def hits() -> bool:
            place = self.run("window.aimed.place()")
            if place is not None:
                for kind in ("mousePressed", "mouseReleased"):
                    about = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
                    self.call("Input.dispatchMouseEvent", **about)
            return bool(self.run("window.aimed.isHit"))

        eventually(hits, LIMIT_S, every_s=0.05)

    def press(self, key: str) -> None:
        """Press and release a key."""
        about: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        if key == "Enter":
            about["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, *, is_phone: bool = False, is_dark: bool = False) -> None:
        """Be a screen of that many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Keep what is seen as a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def a_browser(folder: Path) -> Iterator[Tab]:
    """A Chromium of its own, with one page. folder: for its profile."""
    assert CHROMIUM is not None
    profile = folder / "chromium"
    command = [CHROMIUM, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    command += [
        "--no-first-run",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]
    command += [
        "--disable-component-update",
        "--disable-extensions",
        "--mute-audio",
        "--hide-scrollbars",
        "about:blank",
    ]
    with open(folder / "chromium.log", "wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
        )
    try:
        port = eventually(lambda: _port(profile, process), 30.0)
        address = eventually(lambda: _page_at(port), 30.0)
        # events that nobody reads yet stand in the way of pings
        with connect(address, max_size=None, compression=None, ping_interval=None) as line:
            yield Tab(line)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port(profile: Path, process: "subprocess.Popen[bytes]") -> int:
    assert process.poll() is None, (profile.parent / "chromium.log").read_text()
    try:
        return int((profile / "DevToolsActivePort").read_text().split()[0])
    except (FileNotFoundError, IndexError):
        return 0


def _page_at(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/json/list")
        pages = json.loads(connection.getresponse().read())
    except OSError:
        return ""
    finally:
        connection.close()
    return next((str(page["webSocketDebuggerUrl"]) for page in pages if page["type"] == "page"), "")
