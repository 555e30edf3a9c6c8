"""Libraries that have been at work at import, in replicas."""

import pytest

from tests.rooms.library_room import Library, works_in_replicas
from tests.rooms.replica_room import REPOSITORY

pytestmark = pytest.mark.slow

IRIS = REPOSITORY / "examples" / "onnxruntime" / "iris.onnx"
LIBRARIES = (
    Library(
        "scikit-learn on OpenMP, with another count of threads",
        "import numpy as np\n"
        "from sklearn.ensemble import HistGradientBoostingClassifier\n"
        "X = np.random.default_rng(1).random((2000, 8))\n"
        "model = HistGradientBoostingClassifier(max_iter=3).fit(X, X[:, 0] > 0.5)\n"
        "def work():\n    return int(model.predict(X).sum())\n",
        threads=3,
    ),
    Library(
        "onnxruntime",
        "import numpy as np\n"
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(IRIS)!r}, providers=['CPUExecutionProvider'])\n"
        "X = np.ones((500, 4), np.float32)\n"
        "def work():\n    return float(session.run(None, {'flowers': X})[0].sum())\n",
    ),
    Library(
        "onnxruntime in parallel",
        "import onnxruntime\n"
        "options = onnxruntime.SessionOptions()\n"
        "options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL\n"
        "options.inter_op_num_threads = 2\n"
        f"session = onnxruntime.InferenceSession({str(IRIS)!r}, options, providers=['CPUExecutionProvider'])\n"
        "def work():\n    return float(session.run(None, {'flowers': [[1.0] * 4]})[0].sum())\n",
        spawned="`ExecutionMode.ORT_PARALLEL`",
    ),
    Library(
        "polars beside numpy",
        "import numpy as np\n"
        "import polars as pl\n"
        "np.ones((600, 600)) @ np.ones((600, 600))\n"
        "frame = pl.DataFrame({'a': list(range(1000))})\n"
        "def work():\n    return frame.lazy().filter(pl.col('a') > 10).select(pl.col('a').sum()).collect().item()\n",
        spawned="_polars_runtime",
    ),
)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
async def test_work_at_import_goes_on_in_replicas(library: Library) -> None:
    await works_in_replicas(library)


@pytest.mark.long
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
async def test_work_at_import_and_in_the_constructor_goes_on_in_preloaded_replicas(library: Library) -> None:
    await works_in_replicas(library, is_preloaded=True)
