"""The head of a Ray cluster as far as servd talks to it: packages, documents, what runs; everything runs at once."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

APPLICATIONS, PACKAGES = "/api/serve/applications/", "/api/packages/gcs/"


class FakeHead:
    """token: that it wants; "" = none. refusal: answer to the next PUT; (0, "") = it is taken."""

    def __init__(self) -> None:
        self.token = ""
        self.refusal = (0, "")
        self.packages: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.document: dict[str, Any] = {}
        self.imperative: list[str] = []

    def details(self) -> dict[str, Any]:
        if not self.document:
            return {"controller_info": {}, "proxies": {}, "applications": {}}
        apps = {app["name"]: a_running_app(app, "declarative") for app in self.document["applications"]}
        apps.update({name: a_running_app({"name": name}, "imperative") for name in self.imperative})
        http = {"port": 8000, "root_path": "", **self.document["http_options"]}
        return {"http_options": http, "proxies": {"node": {"status": "HEALTHY"}}, "applications": apps}

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, str]:
        if self.token and token != f"Bearer {self.token}":
            return (403, "Forbidden") if token else (401, "Unauthorized")
        name = path.removeprefix(PACKAGES)
        if name != path and method == "PUT":
            self.packages[name] = body
            self.uploads.append(name)
        elif name != path:
            return (200, "") if name in self.packages else (404, "does not exist")
        elif method == "GET":
            return 200, json.dumps(self.details())
        elif method == "DELETE":
            self.document = {}
        elif self.refusal[0]:
            return self.refusal
        else:
            self.document = json.loads(body)
        return 200, ""

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve; gives the address."""
        head = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, text = head.answer(self.command, self.path, body, self.headers.get("authorization"))
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_DELETE = _reply

            def log_message(self, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def a_running_app(config: dict[str, Any], source: str) -> dict[str, Any]:
    return {
        **an_app("RUNNING"),
        "name": config["name"],
        "source": source,
        "deployed_app_config": config if source == "declarative" else None,
    }


def an_app(status: str, message: str = "", deployment: str = "") -> dict[str, Any]:
    return {
        "status": status,
        "message": message,
        "route_prefix": "/",
        "last_deployed_time_s": 1.0,
        "deployments": {
            "D": {
                "status": "HEALTHY" if status == "RUNNING" else "UPDATING",
                "status_trigger": "CONFIG_UPDATE_COMPLETED",
                "message": deployment,
                "target_num_replicas": 1,
                "replicas": [{"state": "RUNNING", "start_time_s": 1.0}] if status == "RUNNING" else [],
            }
        },
    }
