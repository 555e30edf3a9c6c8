"""The pictures of the live page in `docs/`: `python -m tests.system.page_pictures`. They need a Chromium."""

import http.client
import os
import signal
import tempfile
import threading
from pathlib import Path

from servd.ground.clock import SystemClock, block_for
from tests.browser import Tab, a_browser
from tests.system.running_daemon import RunningDaemon, a_daemon, settings_in

DOCS = Path(__file__).parents[2] / "docs"
LOAD_S = 75.0
CODE = """
import asyncio, random
from servd import deployment

@deployment(num_replicas=2)
class Basket:
    async def __call__(self, request):
        await asyncio.sleep(random.expovariate(50))
        if random.random() < 0.01:
            raise KeyError("no price of a durian is known")
        return "3.50"

scaling = {"max_replicas": 4, "target_num_ongoing_requests_per_replica": 1, "upscale_delay_s": 2}

@deployment(autoscaling_config=scaling)
class Recommend:
    async def __call__(self, request):
        await asyncio.sleep(0.05)
        return "mango"

basket = Basket.bind()
recommend = Recommend.bind()
"""


def _load(port: int, path: str, until: float) -> None:
    clock = SystemClock()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    while clock.now() < until:
        try:
            connection.request("GET", path)
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
    connection.close()


def _take(tab: Tab, daemon: RunningDaemon) -> None:
    tab.size(1200, 900)
    tab.go(f"http://127.0.0.1:{daemon.settings.admin_port}/")
    tab.shows("RUNNING", "#apps")
    block_for(LOAD_S)
    for name, about in (
        ("light", (1200, 900, False, False)),
        ("dark", (1200, 900, False, True)),
        ("phone", (390, 844, True, False)),
    ):
        width, height, is_phone, is_dark = about
        tab.size(width, height, is_phone=is_phone, is_dark=is_dark)
        tab.run("scrollTo(0, 0)")
        block_for(1.0)
        tab.picture(DOCS / f"page-{name}.png")


def main() -> None:
    """Deploy a shop, use it for a minute, kill a replica, and keep what the page shows."""
    with tempfile.TemporaryDirectory(prefix="page-") as name:
        folder = Path(name)
        code = folder / "code"
        code.mkdir()
        (code / "shop.py").write_text(CODE)
        env = {"working_dir": str(code)}
        apps = [
            {"name": app, "route_prefix": f"/{app}", "import_path": f"shop:{app}", "runtime_env": env}
            for app in ("basket", "recommend")
        ]
        with a_daemon(settings_in(folder)) as daemon, a_browser(folder) as tab:
            code_, body = daemon.ask("PUT", "/api/serve/applications/", {"applications": apps})
            assert code_ == 200, body
            until = SystemClock().now() + LOAD_S + 20
            port = daemon.settings.http_port
            users = [
                threading.Thread(target=_load, args=(port, path, until), daemon=True)
                for path in ("/basket", "/basket", "/recommend", "/recommend", "/recommend")
            ]
            for user in users:
                user.start()
            threading.Timer(LOAD_S / 2, _kill_one, (daemon,)).start()
            _take(tab, daemon)


def _kill_one(daemon: RunningDaemon) -> None:
    [one] = daemon.status()["applications"]["basket"]["deployments"].values()
    os.kill(one["replicas"][0]["pid"], signal.SIGKILL)


if __name__ == "__main__":
    main()
