"""What a Ray cluster imports to build an application that is written with `import servd`: an application builder of Ray's.

The cluster has this package as one of `py_modules`, or installed. Needs what `ray[serve]` brings.
"""

import importlib
from typing import Any

from servd.engines.on_ray import stand_ins


def build(args: dict[str, Any]) -> Any:
    """The application as Ray's own kind.

    Args:
        args: `import_path` and `args` of the application, its `name`, and `options`: deployment -> those options of servd's that
            the document gives and Ray does not know.
    """
    stand_ins.install()
    return importlib.import_module("servd.engines.on_ray.application").ray_application(args)
