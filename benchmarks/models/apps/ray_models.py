"""Ray Serve with the model: `python ray_models.py PORT DIRECTORY OPTIONS REPLICAS`, options as JSON; SIGUSR1 = more replicas."""

import json
import signal
import sys
from types import FrameType

import ray
import serve_models
from ray import serve

port, directory, options, more = sys.argv[1:]
ray.init(address="local", include_dashboard=False, _temp_dir=directory, logging_level="warning")
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})


def run(**changes: object) -> None:
    """Deploy it with these options."""
    serve.run(serve_models.Model.options(**json.loads(options) | changes).bind())


def grow(_number: int, _frame: FrameType | None) -> None:
    """More replicas."""
    run(num_replicas=int(more))


signal.signal(signal.SIGUSR1, grow)
run()
while True:
    signal.pause()
