"""What `servd open` does."""

import os
import webbrowser
from collections.abc import Mapping

from servd.daemon.admin_client import AdminClient
from servd.exceptions import ConfigError


def open_page(client: AdminClient, *, may_open: bool) -> None:
    """Print the URL of the live page, and open it in the browser of a desktop.

    Raises:
        ConfigError: the daemon has none.
    """
    client.probe()
    url = client.status().get("page_url") if client.is_unix else f"{client.address}/"
    if not url:
        raise ConfigError(
            f"the daemon at {client.address} is of a servd without a live page; `servd upgrade` brings it"
        )
    print(url, flush=True)
    # on a terminal alone it would start a browser of text, without scripts
    if may_open and has_desktop(os.environ):
        webbrowser.open(url)


def has_desktop(environment: Mapping[str, str]) -> bool:
    """Whether there is somewhere to open a window."""
    return bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
