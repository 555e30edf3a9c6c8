"""Conversations that stay in memory: each session comes to the replica that remembers it, as the document's router says."""

from collections import defaultdict

from starlette.requests import Request

from servd import deployment, get_replica_context


@deployment
class Talks:
    def __init__(self) -> None:
        self.said: defaultdict[str, list[str]] = defaultdict(list)

    async def __call__(self, request: Request) -> dict[str, object]:
        talk = self.said[request.headers.get("x-user-id", "")]
        talk.append(request.query_params.get("say", ""))
        return {"replica": get_replica_context().replica_tag, "said": talk}


app = Talks.bind()
