"""Ray Serve with the applications named: `python ray_server.py PORT TEMPORARY_DIRECTORY APPLICATION...`."""

import signal
import sys

import ray
import serve_app
from ray import serve

port, directory, *names = sys.argv[1:]
ray.init(address="local", include_dashboard=False, _temp_dir=directory, logging_level="warning")
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
serve.run_many([serve.RunTarget(getattr(serve_app, name), name=name, route_prefix=f"/{name}") for name in names])
signal.pause()
