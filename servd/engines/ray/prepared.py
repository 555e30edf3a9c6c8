"""A document whose meaning no longer hangs on files of this host, but for the directories that it names."""

import os
from collections.abc import Mapping
from typing import Any

from servd.documents import runtime_env
from servd.engines.ray.document_rules import local_directories, with_environments
from servd.exceptions import ConfigError, DeployError
from servd.replica.code.requirements import requirements


def prepared(value: Mapping[str, Any]) -> dict[str, Any]:
    """The document with requirements files read, and module directories of `py_modules` as the folders that hold them.

    Raises:
        ConfigError: a requirements file cannot be read.
    """
    return with_environments(value, _environment)


def with_requirements(env: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of an environment whose `pip` is no path: what the file has, read here.

    Raises:
        ConfigError: it cannot be read.
    """
    found = dict(env)
    if isinstance(env.get("pip"), str):
        here = local_directories({"working_dir": env.get("working_dir")})
        try:
            found["pip"] = requirements(env["pip"], here[0] if here else os.getcwd())[0]
        except DeployError as error:
            raise ConfigError(str(error)) from error
    return found


def _environment(env: Mapping[str, Any]) -> dict[str, Any]:
    found = with_requirements(env)
    if env.get("py_modules"):
        found["py_modules"] = [_folder(uri) for uri in env["py_modules"] if uri is not None]
    return found


def _folder(uri: str) -> str:
    """A directory that is put on the import path; a cluster does so with the directory itself, be it a package or not."""
    if not local_directories({"py_modules": [uri]}):
        return uri
    path = runtime_env.local_path(uri)
    return os.path.dirname(path) if os.path.exists(os.path.join(path, "__init__.py")) else path
