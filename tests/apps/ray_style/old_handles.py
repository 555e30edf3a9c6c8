"""Handles without annotation in two steps, as before release 2.7: needs SERVD_LEGACY_HANDLES=1."""

from ray import serve


@serve.deployment
class Downstream:
    def say_hi(self, message: str):
        return f"Hello {message}!"


@serve.deployment
class Ingress:
    def __init__(self, handle):
        self.handle = handle

    async def __call__(self, request):
        ref = await self.handle.say_hi.remote(request.query_params["name"])
        refs = [await self.handle.say_hi.remote(name) for name in ("a", "b")]
        return [await ref, *[await one for one in refs]]


app = Ingress.bind(Downstream.bind())
