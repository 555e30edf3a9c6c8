"""Many models in few replicas."""

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request


class Model:
    def __init__(self, model_id: str):
        self.model_id = model_id

    def predict(self, text: str) -> str:
        return f"{self.model_id}({text})"


@serve.deployment(num_replicas=2)
class ModelInferencer:
    def __init__(self):
        self.loaded = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, model_id: str):
        if model_id == "broken":
            raise FileNotFoundError(f"no weights of {model_id}")
        self.loaded.append(model_id)
        return Model(model_id)

    async def __call__(self, request: Request):
        model = await self.get_model(serve.get_multiplexed_model_id())
        return {"answer": model.predict("x"), "loaded": self.loaded, "replica": serve.get_replica_context().replica_tag}

    async def predict(self, text: str) -> str:
        model = await self.get_model(serve.get_multiplexed_model_id())
        return model.predict(text)


@serve.deployment
class Upstream:
    def __init__(self, downstream: DeploymentHandle):
        self.downstream = downstream

    async def __call__(self, request: Request):
        ids = request.query_params["models"].split(",")
        found = [self.downstream.options(multiplexed_model_id=one).predict.remote(one) for one in ids]
        return [await one for one in found]


app = ModelInferencer.bind()
upstream = Upstream.bind(ModelInferencer.bind())
