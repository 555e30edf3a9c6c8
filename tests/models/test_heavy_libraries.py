"""Heavy libraries that have been at work at import, in replicas."""

import pytest

from tests.rooms.library_room import Library, works_in_replicas

pytestmark = pytest.mark.models

_DATA = "import numpy as np\nX = np.random.default_rng(1).random((3000, 16), np.float32)\ny = X[:, 0] > 0.5\n"
_TORCH = """
import torch
torch.manual_seed(1)
M = torch.randn(400, 400)
def work():
    return [torch.get_num_threads(), round(float(torch.relu(M @ M).mean()), 3)]
"""
_OTEL = """
import threading, uuid
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter))
def work():
    name = str(uuid.uuid4())
    with provider.get_tracer("test").start_as_current_span(name):
        pass
    provider.force_flush()
    sent = [span.name for span in exporter.get_finished_spans()].count(name)
    return [sent, "OtelBatchSpanRecordProcessor" in [thread.name for thread in threading.enumerate()]]
"""
_SENTRY = """
import threading
import sentry_sdk
from sentry_sdk.transport import HttpTransport
sent = []
class Kept(HttpTransport):
    def _send_envelope(self, envelope):
        sent.append(envelope.headers["event_id"])
sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept, default_integrations=False)
def work():
    identifier = sentry_sdk.capture_message("something")
    sentry_sdk.flush(10)
    return [sent.count(identifier), "sentry-sdk.BackgroundWorker" in [thread.name for thread in threading.enumerate()]]
"""
_EAPM = """
import threading
import elasticapm
client = elasticapm.Client(service_name="test", server_url="http://127.0.0.1:9", disable_log_record_factory=True)
def work():
    client.begin_transaction("request")
    client.end_transaction("name", "success")
    return [thread.name for thread in threading.enumerate()].count("eapm event processor thread")
"""
_DDTRACE = """
import logging, os
from pathlib import Path
os.environ |= {"DD_TRACE_AGENT_URL": "http://127.0.0.1:9", "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false"}
from ddtrace import tracer
logging.getLogger("ddtrace").setLevel(logging.CRITICAL)
def work():
    with tracer.trace("test"):
        pass
    return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")].count("NativeWriter\\n")
"""
_TOKENIZERS = """
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.train_from_iterator(["one fish two fish"] * 50, trainers.BpeTrainer(show_progress=False))
def work():
    return sum(len(e.ids) for e in tokenizer.encode_batch(["two fish"] * 200))
"""
LIBRARIES = (
    Library("opentelemetry", _OTEL),
    Library("sentry", _SENTRY),
    Library("elastic-apm", _EAPM),
    Library("ddtrace", _DDTRACE),
    Library("torch", _TORCH),
    Library(
        "torch with one thread", _TORCH.replace("torch.manual_seed", "torch.set_num_threads(1)\ntorch.manual_seed")
    ),
    Library("torch with another count of threads", _TORCH.replace("torch.get_num_threads(), ", ""), threads=3),
    # that starts a pool of PyTorch's own
    Library(
        "torch with three threads",
        _TORCH.replace("torch.manual_seed", "torch.set_num_threads(3)\ntorch.manual_seed"),
        spawned="libtorch_cpu",
    ),
    Library(
        "xgboost",
        f"{_DATA}import xgboost\n"
        "model = xgboost.XGBClassifier(n_estimators=5).fit(X, y)\n"
        "def work():\n    return int(model.predict(X).sum())\n",
    ),
    Library(
        "lightgbm with threads in the code",
        f"{_DATA}import lightgbm\n"
        "model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=2, verbose=-1).fit(X, y)\n"
        "def work():\n    return int(model.predict_proba(X)[:, 0].sum())\n",
    ),
    Library(
        "faiss",
        f"{_DATA}import faiss\n"
        "index = faiss.IndexFlatL2(16)\n"
        "index.add(X)\n"
        "def work():\n    return int(index.search(X[:200], 3)[1].sum())\n",
    ),
    Library("tokenizers", _TOKENIZERS),
    # as those set it who were warned of forks
    Library(
        "tokenizers told to be parallel", f"import os\nos.environ['TOKENIZERS_PARALLELISM'] = 'true'\n{_TOKENIZERS}"
    ),
    Library(
        "hf_xet",
        "import hf_xet\ndef work():\n    return hf_xet.hash_files([__file__])[0].hash\n",
    ),
    Library(
        "numba on OpenMP",
        "import numpy as np\n"
        "import numba\n"
        "numba.config.THREADING_LAYER = 'omp'\n"
        "@numba.njit(parallel=True)\n"
        "def total(a):\n    s = 0.0\n    for i in numba.prange(len(a)):\n        s += a[i]\n    return s\n"
        "A = np.ones(100000)\n"
        "def work():\n    return total(A)\n",
        spawned="numba has run a function with `parallel=True`",
    ),
    Library(
        "jax beside numpy",
        "import numpy as np\n"
        "np.ones((600, 600)) @ np.ones((600, 600))\n"
        "import jax.numpy as jnp\n"
        "A = jnp.ones((100, 100))\n"
        "def work():\n    return float((A @ A).sum())\n",
        spawned="jax",
    ),
)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
async def test_work_at_import_goes_on_in_replicas(library: Library) -> None:
    await works_in_replicas(library)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
async def test_work_at_import_and_in_the_constructor_goes_on_in_preloaded_replicas(library: Library) -> None:
    await works_in_replicas(library, is_preloaded=True)
