"""Tells iris flowers apart with onnxruntime, behind FastAPI. The session is made at import and goes on in forked replicas.

curl -X POST -H 'content-type: application/json' -d '[[5.1, 3.5, 1.4, 0.2]]' http://127.0.0.1:8000/
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import Field

from servd import deployment, ingress

SPECIES = ("setosa", "versicolor", "virginica")
Flower = Annotated[list[float], Field(min_length=4, max_length=4)]

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("iris.onnx")), providers=["CPUExecutionProvider"])
api = FastAPI(title="Irises")


@deployment(num_replicas=2)
@ingress(api)
class Irises:
    """Answers with the most likely species of each flower and its probability."""

    # a plain function: runs on a thread, beside other requests
    @api.post("/")
    def classify(self, flowers: Annotated[list[Flower], Field(min_length=1)]) -> list[dict[str, float | str]]:
        """flowers: length and width of the sepal, then of the petal, cm."""
        (probabilities,) = session.run(None, {"flowers": np.asarray(flowers, np.float32)})
        return [{"species": SPECIES[row.argmax()], "probability": float(row.max())} for row in probabilities]


app = Irises.bind()
