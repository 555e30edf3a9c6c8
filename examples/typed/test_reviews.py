"""pytest: the application in the test's own process, with an HTTP client in front."""

from collections.abc import Iterator

import pytest
from reviews import app

from servd.testing import AppClient, client


@pytest.fixture
def http() -> Iterator[AppClient]:
    with client(app) as http:
        yield http


@pytest.mark.parametrize(("text", "score"), [("A great day", 2.0), ("good but awful", 0.0), ("", 0.0)])
def test_the_score_of_a_text(http: AppClient, text: str, score: float) -> None:
    assert http.get("/score", params={"text": text}).json() == {"score": score}


def test_the_words_that_tell(http: AppClient) -> None:
    assert http.get("/words", params={"text": "Great but awful"}).text == "great\nawful\n"
