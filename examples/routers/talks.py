"""Conversations that stay in memory: each session comes to the replica that remembers it, as the document's router says."""

from collections import defaultdict

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from servd import deployment, get_replica_context


@deployment
class Talks:
    def __init__(self) -> None:
        self.said: defaultdict[str, list[str]] = defaultdict(list)

    async def __call__(self, request: Request) -> Response | dict[str, object]:
        user = request.headers.get("x-user-id", "")
        if not user:
            return PlainTextResponse("say who you are: header x-user-id", status_code=400)
        talk = self.said[user]
        talk.append(request.query_params.get("say", ""))
        return {"replica": get_replica_context().replica_tag, "said": talk}


app = Talks.bind()
