"""The model as a deployment: one file for Ray Serve and for servd, whose replicas know the same names under `ray`."""

import bench_models
from ray import serve
from starlette.requests import Request


@serve.deployment
class Model:
    """Loads the model as each replica does, or, with `preload`, as the template does for all."""

    def __init__(self) -> None:
        self.model = bench_models.load()

    def __call__(self, request: Request) -> str:  # noqa: ARG002 - both pass it
        return bench_models.answer(self.model)


app = Model.bind()
