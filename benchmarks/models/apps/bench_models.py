"""The models that all systems serve: `python bench_models.py DIRECTORY` makes their files.

The environment says which one this process imports its library for (BENCH_MODEL), where the files are (BENCH_FILES), and where a
line is left for each import (BENCH_IMPORTS).
"""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

NAMES = ("torch", "sklearn")
NAME = os.environ.get("BENCH_MODEL", "torch")
FILES = Path(os.environ.get("BENCH_FILES", "."))
WORDS, WIDTH, LAYERS, HEADS, LENGTH = 30_522, 768, 12, 12, 8
"""The shape of BERT's base model: 108 million parameters, 434 MB; one text of 8 words a request."""
ROWS, FEATURES = 20_000, 32

if NAME == "torch":
    import torch
else:
    import numpy as np
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

if "BENCH_IMPORTS" in os.environ:
    with open(os.environ["BENCH_IMPORTS"], "a") as _file:
        _file.write(f"{os.getpid()}\n")


class TorchModel:
    """Scores one text. Each instance reads the weights from the disk into memory of its own."""

    def __init__(self) -> None:
        with torch.device("meta"):
            self.model = skeleton()
        self.model.load_state_dict(torch.load(FILES / "torch"), assign=True)
        self.model.eval()
        self.words = torch.arange(LENGTH).reshape(1, LENGTH)

    def __call__(self) -> str:
        with torch.inference_mode():
            return f"{float(self.model(self.words).mean()):.3f}"


class Pipeline:
    """Classifies 64 rows with scikit-learn, the first time as it is made."""

    def __init__(self) -> None:
        self.pipeline = pickle.loads((FILES / "sklearn").read_bytes())
        self.rows = np.random.default_rng(2).random((64, FEATURES))
        # what the first prediction loads and remembers is there for all who share this instance; a pool of threads would be lost
        with threadpool_limits(1):
            self()

    def __call__(self) -> str:
        return f"{self.pipeline.predict_proba(self.rows)[:, 0].sum():.3f}"


def load() -> Any:
    """The model of this process; calling it does one request's work and gives the answer."""
    return TorchModel() if NAME == "torch" else Pipeline()


def answer(model: Any) -> str:
    """What all systems answer: who did it, and the result."""
    return f"{os.getpid()} {model()}"


def skeleton() -> Any:
    """The layers, with weights that mean nothing."""
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    # an embedding of its own accord draws numbers, for which PyTorch loads its compiler on the device "meta"
    embedding = torch.nn.Embedding.from_pretrained(torch.empty(WORDS, WIDTH), freeze=False)
    return torch.nn.Sequential(embedding, encoder, torch.nn.Linear(WIDTH, 2))


def make(directory: Path) -> None:
    """Write the model's file."""
    if NAME == "torch":
        torch.manual_seed(1)
        model = skeleton()
        torch.nn.init.normal_(model[0].weight)
        torch.save(model.state_dict(), directory / "torch")
        return
    rng = np.random.default_rng(1)
    rows = rng.random((ROWS, FEATURES))
    pipeline = make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=100))
    pipeline.fit(rows, rows[:, 0] + rows[:, 1] > 1)
    (directory / "sklearn").write_bytes(pickle.dumps(pipeline))


if __name__ == "__main__":
    FILES = Path(sys.argv[1])
    if not (FILES / NAME).exists():
        make(FILES)
    print(load()())
