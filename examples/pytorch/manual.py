"""Finds the paragraphs of Python's manual that answer a question, with PyTorch: eight replicas of one model.

The model is made in the constructor, from the manual that is part of Python: which words occur where becomes a matrix, its
largest singular vectors give each word and each paragraph a place in a space of meanings. With `preload` that happens once; the
replicas are forked with the model, in milliseconds, and share its memory. A device is each replica's own business.

curl 'http://127.0.0.1:8000/?question=how+do+I+catch+an+exception'
"""

import math
import re
from collections import Counter
from pydoc_data.topics import topics

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse

from servd import deployment

DIMENSIONS = 128
FOUND = 3
LEAST_WORDS = 20
"""A shorter paragraph is a heading or a piece of a grammar."""


class Manual(torch.nn.Module):
    """Scores all paragraphs for a question."""

    def __init__(self) -> None:
        super().__init__()
        # some are on several pages
        page_of = {text: page for page, whole in topics.items() for text in _paragraphs(whole)}
        self.paragraphs = [(page, text) for text, page in page_of.items()]
        counts = [Counter(_words(text)) for _, text in self.paragraphs]
        known = Counter(word for count in counts for word in count)
        self.number_of = {word: number for number, (word, times) in enumerate(known.items()) if times > 1}
        self.number_of = {word: number for number, word in enumerate(self.number_of)}
        rarity = torch.tensor([len(counts) / known[word] for word in self.number_of]).log()
        matrix = torch.zeros(len(counts), len(self.number_of))
        for row, count in enumerate(counts):
            for word, times in count.items():
                if word in self.number_of:
                    matrix[row, self.number_of[word]] = 1 + math.log(times)
        matrix = torch.nn.functional.normalize(matrix * rarity, dim=1)
        torch.manual_seed(1)
        left, strength, right = torch.svd_lowrank(matrix, DIMENSIONS)
        # buffers: they move with the module to another device
        self.register_buffer("words", right * rarity[:, None])
        self.register_buffer("places", torch.nn.functional.normalize(left * strength, dim=1))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """numbers: of the question's words, shape (n,), n >= 1. Gives a score for each paragraph."""
        return self.places @ torch.nn.functional.normalize(self.words[numbers].sum(0), dim=0)

    def numbers(self, question: str) -> list[int]:
        """Those of its words that the manual uses."""
        return [self.number_of[word] for word in _words(question) if word in self.number_of]


@deployment(preload=True, num_replicas=8)
class Search:
    """Answers with the paragraphs that fit a question best."""

    def __init__(self) -> None:
        # once, in the process that all replicas are forked from; on the CPU: what a device holds cannot be forked
        self.model = Manual()

    def on_replica_start(self) -> None:
        # in each replica
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)

    def __call__(self, request: Request) -> list[dict[str, object]] | JSONResponse:
        numbers = self.model.numbers(request.query_params.get("question", ""))
        if not numbers:
            return JSONResponse({"error": "?question=... needs a word that the manual uses"}, 422)
        with torch.inference_mode():
            best = self.model(torch.tensor(numbers, device=self.device)).topk(FOUND)
        found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            dict(zip(("score", "page", "text"), (score, *self.model.paragraphs[n]), strict=True)) for score, n in found
        ]


def _paragraphs(text: str) -> list[str]:
    return [
        " ".join(part.split()) for part in text.split("\n\n") if len(part.split()) >= LEAST_WORDS and "::=" not in part
    ]


def _words(text: str) -> list[str]:
    # "exceptions" and "exception" are one
    return [word.removesuffix("s") for word in re.findall(r"[a-z_]{2,}", text.lower())]


app = Search.bind()
