"""Run as `python -m servd.engines.ray.describing IMPORT_PATH ARGS FILE`: builds an application and writes down what it is."""

import json
import sys

from servd.app.built import build_application, describe
from servd.compat import ray_names
from servd.dag import HandleMaker
from servd.observability.tracebacks import user_traceback
from servd.replica.code.importing import as_application, import_target


def main(import_path: str, args: str, path: str) -> int:
    """Writes the route prefix of its ingress and the options of its deployments; exit status."""
    ray_names.install()
    try:
        built = build_application(as_application(import_target(import_path), json.loads(args)), "", HandleMaker())
    # whatever user code raises, `sys.exit()` included, is the user's news
    except BaseException as error:
        print(user_traceback(error), file=sys.stderr)
        return 1
    caps = {name: item.config.max_concurrent_queries for name, item in built.deployments.items()}
    # the cap also where it is the default: it makes room for batches
    deployments = {one.name: {**one.options, "max_concurrent_queries": caps[one.name]} for one in describe(built)}
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"route_prefix": built.route_prefix, "deployments": deployments}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
