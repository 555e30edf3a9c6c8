"""Checked by `make types` with pyright, which heeds what a class decorator gives; mypy does not. Nothing runs it."""

from servd import deployment


@deployment
class Bare:
    def __init__(self, path: str) -> None:
        self.path = path


@deployment(num_replicas=2)
class Model:
    def __init__(self, path: str, scale: float = 1.0) -> None:
        self.path, self.scale = path, scale


Bare.bind("path")
Model.options(num_replicas=3).bind("path", scale=2.0)
Bare.bind()  # type: ignore
Model.bind(3)  # type: ignore
