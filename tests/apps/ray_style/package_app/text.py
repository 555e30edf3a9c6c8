"""A text pipeline in a package: class ingress, one step, a builder with typed arguments."""

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from package_app.models import Summarizer, Translator

app = FastAPI()


class Arguments(BaseModel):
    language: str
    max_words: int = 3


class Text(BaseModel):
    text: str


@serve.deployment(num_replicas=1)
@serve.ingress(app)
class TextIngress:
    def __init__(self, summarizer: DeploymentHandle, translator: DeploymentHandle):
        self.summarizer = summarizer
        self.translator = translator

    @app.post("/")
    async def pipeline(self, body: Text) -> str:
        summary: DeploymentResponse = self.summarizer.summarize.remote(body.text)
        return await self.translator.translate.remote(summary)

    @app.get("/context")
    def context(self) -> dict:
        about = serve.get_replica_context()
        return {"app": about.app_name, "deployment": about.deployment}


def build(args: Arguments) -> Application:
    return TextIngress.bind(Summarizer.bind(max_words=args.max_words), Translator.bind(args.language))
