"""What holds for every test."""

import gc


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()
