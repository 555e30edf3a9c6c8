"""`ServeSubmissionClient`: what controllers of models, written for Ray, deploy documents with and ask for statuses."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_TIMEOUT_S = 60.0
_APPLICATIONS, _DEPLOYMENTS = "/api/serve/applications/", "/api/serve/deployments/"


class ServeSubmissionClient:
    """Client of the admin API at an address: answers are in the dialect of its port.

    Args:
        dashboard_head_address: `http://` or `https://`, host and port.
        headers: further ones of each request.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self, dashboard_head_address: str, *_args: Any, headers: Mapping[str, str] | None = None, **_kwargs: Any
    ) -> None:
        if not dashboard_head_address.startswith(("http://", "https://")):
            raise ValueError(f"the address begins with http:// or https://, got {dashboard_head_address!r}")
        self._address = dashboard_head_address.rstrip("/")
        self._headers = dict(headers or {})

    def get_serve_details(self) -> dict[str, Any]:
        """All that there is to say of the instance."""
        return dict(self._ask("GET", _APPLICATIONS))

    def deploy_applications(self, config: Mapping[str, Any]) -> None:
        """Put a V2 document in force; does not wait."""
        self._ask("PUT", _APPLICATIONS, config)

    def delete_applications(self) -> None:
        """Delete all applications."""
        self._ask("DELETE", _APPLICATIONS)

    def get_info(self) -> dict[str, Any]:
        """The V1 document in force, as before 2.10."""
        return dict(self._ask("GET", _DEPLOYMENTS))

    def get_status(self) -> dict[str, Any]:
        """The status of the V1 application, as before 2.10."""
        return dict(self._ask("GET", f"{_DEPLOYMENTS}status"))

    def deploy_application(self, config: Mapping[str, Any]) -> None:
        """Put a V1 document in force, as before 2.10; does not wait."""
        self._ask("PUT", _DEPLOYMENTS, config)

    def delete_application(self) -> None:
        """Delete the V1 application, as before 2.10."""
        self._ask("DELETE", _DEPLOYMENTS)

    def get_version(self) -> str:
        """Version of what answers."""
        return str(self._ask("GET", "/api/ray/version")["ray_version"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer's JSON, None without any.

        Raises:
            RuntimeError: refused, with the reason. ConnectionError: nothing answers.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data, self._headers, method=method)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode("utf-8", "replace")
            raise RuntimeError(f"Request failed with status code {error.code}: {reason}.") from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"Failed to connect to servd at address: {self._address}: {error}") from error
        return json.loads(text) if text.strip() else None
