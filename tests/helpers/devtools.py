"""Drives a headless Chromium through its DevTools pipe; nothing but the browser itself is needed.

Commands and events: https://chromedevtools.github.io/devtools-protocol/. On file descriptor 3 the browser reads JSON
messages that end in a zero byte, on 4 it writes them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")
ANSWER_S: Final = 60.0
OPENED: Final = 'exec "$0" "$@" 3</dev/fd/{reads} 4>/dev/fd/{writes}'


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def browser(path: str, profile: Path) -> Iterator[DevTools]:
    """A browser with one empty page. ``profile``: an empty folder for what it writes."""
    reads, to_browser = os.pipe()
    from_browser, writes = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    shell = ["sh", "-c", OPENED.format(reads=reads, writes=writes), path, *flags]
    process = subprocess.Popen(shell, pass_fds=(reads, writes), stderr=subprocess.DEVNULL)
    os.close(reads)
    os.close(writes)
    try:
        yield DevTools(from_browser, to_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        process.wait(ANSWER_S)


class DevTools:
    """One page of a browser."""

    def __init__(self, from_browser: int, to_browser: int) -> None:
        self.events: list[dict[str, Any]] = []
        self._from, self._to = from_browser, to_browser
        self._waiting = b""
        self._number = 0
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    def open(self, path: Path, *, width: int, scheme: str) -> None:
        """Show a file in a window of ``width`` pixels for somebody who prefers the colour ``scheme``."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        while not self.named("Page.loadEventFired"):
            self.events.append(self._next())

    def value(self, script: str) -> Any:
        """What an expression is in the page."""
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def named(self, *names: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") in names]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_S
        while b"\0" not in self._waiting:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"the browser said nothing for {ANSWER_S:.0f} s")
            data = os.read(self._from, 1 << 16)
            if not data:
                raise RuntimeError("the browser has ended")
            self._waiting += data
        line, self._waiting = self._waiting.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message
