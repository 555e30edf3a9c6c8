"""Errors as answers: plain text, the status of the exception's class."""

import logging

from starlette.responses import PlainTextResponse

from servd.exceptions import HostLimitError, ServdError
from servd.ground.host_limits import host_limit_in, told

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 1024 * 1024


class BodyTooLargeError(ServdError):
    """The request body is over the limit."""

    status_code = 413

    def __str__(self) -> str:
        return f"the request body is larger than the limit of {MAX_BODY_BYTES} bytes (1 MiB)"


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> PlainTextResponse:
    """A plain-text error answer."""
    return PlainTextResponse(text, status, headers)


def not_found() -> PlainTextResponse:
    """Unknown path."""
    return problem(404, "404: Not Found")


def not_allowed(verbs: list[str]) -> PlainTextResponse:
    """Known path, wrong verb."""
    return problem(405, "405: Method Not Allowed", {"Allow": ", ".join(verbs)})


def problem_of(error: Exception) -> PlainTextResponse:
    """The answer to a request that raised `error`."""
    if isinstance(error, ServdError):
        if error.status_code >= 500:
            logger.error("admin_request_failed error=%s", error)
        return problem(error.status_code, str(error))
    if limit := host_limit_in(error):
        logger.error("admin_request_failed error=%s", told(error))
        return problem(HostLimitError.status_code, limit)
    logger.error("admin_request_failed", exc_info=error)
    return problem(500, f"{type(error).__name__}: {error}")
