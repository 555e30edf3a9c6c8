"""The style of Ray Serve's front page: packages are imported alone, their modules come with Ray Serve."""

import starlette

from ray import serve


@serve.deployment
class Measure:
    async def __call__(self, request: starlette.requests.Request) -> starlette.responses.Response:
        text = (await request.json())["text"]
        return starlette.responses.JSONResponse({"letters": len(text)}, starlette.status.HTTP_201_CREATED)


app = Measure.bind()
