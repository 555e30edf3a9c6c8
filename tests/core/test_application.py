"""Deployments and applications as values: options, checks, equality."""

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

import servd
from servd.app.deployment import Application, Deployment, parts_of
from servd.app.options import checked_for_bind, parse_options
from servd.config import DeploymentConfig, RayActorOptions


@servd.deployment
class Model:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def predict(self) -> None: ...


def a_class() -> type[Any]:
    class Thing: ...

    return Thing


def test_bare_and_with_options() -> None:
    assert Model.name == "Model"
    assert Model.num_replicas == 1
    assert Model.max_concurrent_queries == Model.max_ongoing_requests == 100
    assert Model.route_prefix == "/Model"
    named = servd.deployment(name="m", num_replicas=3, route_prefix=None)(a_class())
    assert (named.name, named.num_replicas, named.route_prefix) == ("m", 3, None)
    assert servd.deployment(num_replicas=None)(a_class()).num_replicas == 1


def test_none_of_what_servd_does_not_have_is_fine() -> None:
    nothing: dict[str, Any] = dict.fromkeys(DeploymentConfig.hints)
    assert "placement_group_bundles" in nothing
    assert servd.deployment(**nothing)(a_class()).options(**nothing).config.given() == {}
    with pytest.raises(TypeError, match="servd has no placement_group_bundles: num_gpus"):
        servd.deployment(**{**nothing, "placement_group_bundles": [{"CPU": 1}]})(a_class())
    with pytest.raises(TypeError, match="unknown option 'colour'"):
        servd.deployment(colour=None)(a_class())  # type: ignore[call-arg]
    unset = dict.fromkeys((*RayActorOptions.model_fields, "label_selector"))
    bound = Model.options(ray_actor_options={**unset, "num_cpus": 2}).bind()
    assert checked_for_bind(parts_of(bound)[0].config).ray_actor_options == {"num_cpus": 2.0}
    with pytest.raises(ValueError, match="colour"):
        Model.options(ray_actor_options={"colour": None}).bind()


@pytest.mark.parametrize(
    "options",
    [
        {"name": 1},
        {"version": 1},
        {"init_args": 1},
        {"init_kwargs": [1]},
        {"route_prefix": 1},
        {"ray_actor_options": [1]},
        {"nonsense": 1},
        {"max_replicas_per_node": 1},
    ],
)
def test_wrong_types_and_unknown_options(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        servd.deployment(**options)(a_class())


@pytest.mark.parametrize(
    "options",
    [
        {"num_replicas": 0},
        {"num_replicas": -1},
        {"num_replicas": 2, "autoscaling_config": {"max_replicas": 3}},
        {"route_prefix": "x"},
        {"route_prefix": "/x/"},
        {"route_prefix": "/{x}"},
        {"user_config": {"x": object()}},
        {"max_concurrent_queries": 0},
        {"max_concurrent_queries": 5, "max_ongoing_requests": 5},
        {"autoscaling_config": {"min_replicas": 2}},
        {"autoscaling_config": {"nonsense": 2}},
        {"graceful_shutdown_timeout_s": -1},
        {"health_check_period_s": 0},
        {"is_driver_deployment": True, "num_replicas": 2},
        {"max_queued_requests": 0},
        {"start_method": "thread"},
    ],
)
def test_wrong_values(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        servd.deployment(**options)(a_class())


def test_a_negative_count_is_a_validation_error() -> None:
    with pytest.raises(ValidationError):
        servd.deployment(num_replicas=-1)(a_class())


@pytest.mark.parametrize("thing", [1, print, object()])
def test_only_classes_and_functions_are_deployed(thing: Any) -> None:
    with pytest.raises(TypeError):
        servd.deployment(thing)


def test_both_vocabularies() -> None:
    made = servd.deployment(
        max_ongoing_requests=5, autoscaling_config={"max_replicas": 2, "target_ongoing_requests": 3}
    )(a_class())
    assert made.max_concurrent_queries == 5
    given = made.config.given()
    assert given["max_concurrent_queries"] == 5
    assert given["autoscaling_config"]["target_num_ongoing_requests_per_replica"] == 3
    auto = servd.deployment(num_replicas="auto")(a_class())
    assert auto.config.given()["autoscaling_config"]["max_replicas"] == 100


def test_options_copy_and_set_options_change() -> None:
    changed = Model.options(num_replicas=4, name="other")
    assert (changed.num_replicas, changed.name, Model.num_replicas) == (4, "other", 1)
    assert changed.options(num_replicas=None).num_replicas == 4
    changed.set_options(user_config={"a": 1})
    assert changed.user_config == {"a": 1}
    assert changed.num_replicas == 4
    with pytest.raises(ValueError):
        Model.options(num_replicas=0)
    with pytest.raises(TypeError):
        Model.options(nonsense=0)
    with pytest.raises(ValueError, match="name must not be empty"):
        Model.options(name="")


def test_a_count_does_not_end_autoscaling() -> None:
    scaling = Model.options(autoscaling_config={"max_replicas": 3})
    assert scaling.options(num_replicas=2).config.autoscaling_config is not None
    assert scaling.options(autoscaling_config=None).config.autoscaling_config is None


def test_driver_deployments_have_one_replica_after_options_too() -> None:
    driver = Model.options(is_driver_deployment=True)
    with pytest.raises(ValueError, match="driver"):
        driver.options(num_replicas=2)


def test_deployments_are_not_called_or_constructed() -> None:
    with pytest.raises(RuntimeError, match="bind"):
        Model()
    with pytest.raises(RuntimeError):
        Deployment(a_class(), "x", DeploymentConfig())
    with pytest.raises(RuntimeError):
        Application(Model, (), {})


def test_text_and_equality() -> None:
    assert str(Model) == "Deployment(name=Model,version=None,route_prefix=/Model)"
    assert Model.options(num_replicas=2) == Model.options(num_replicas=2)
    assert Model.options(num_replicas=2) != Model
    assert Model.options(name="x") != Model


def test_deprecated_options_warn() -> None:
    with pytest.warns(DeprecationWarning, match="init_args"):
        made = servd.deployment(init_args=(1,))(a_class())
    assert made.init_args == (1,)
    with pytest.warns(DeprecationWarning, match="version"):
        assert servd.deployment(version="1")(a_class()).version == "1"
    with pytest.warns(DeprecationWarning, match="init_args"), pytest.raises(ValueError, match="function"):
        servd.deployment(init_args=(1,))(test_text_and_equality)


@pytest.mark.parametrize(
    "options",
    [
        {"ray_actor_options": {"num_cpus": -1}},
        {"ray_actor_options": {"nonsense": 1}},
        {"ray_actor_options": {"resources": {"CPU": 1}}},
        {"ray_actor_options": {"runtime_env": {"working_dir": "relative"}}},
        {"ray_actor_options": {"runtime_env": {"working_dir": "s3://bucket/x.zip"}}},
        {"ray_actor_options": {"runtime_env": {"env_vars": {"A": 1}}}},
    ],
)
def test_bind_checks_what_the_decorator_does_not(options: dict[str, Any]) -> None:
    made = servd.deployment(**options)(a_class())
    with pytest.raises(ValueError):
        made.bind()


@pytest.mark.parametrize("config", [[1], "text", 0, False, 2.5, {}])
def test_a_user_config_is_any_json_value(config: Any) -> None:
    assert servd.deployment(user_config=config)(a_class()).bind()._deployment.user_config == config


def test_a_name_may_come_first() -> None:
    assert servd.deployment("counter", num_replicas=2)(a_class()).name == "counter"
    with pytest.raises(TypeError, match="twice: 'a' and 'b'"):
        servd.deployment("a", name="b")


def test_bind_leaves_the_deployment_as_it_is() -> None:
    first, second = Model.bind(1), Model.bind(2)
    assert first is not second
    assert Model.init_args == ()


def test_bound_once_is_enough() -> None:
    app = Model.bind()
    with pytest.raises(AttributeError):
        app.bind()
    with pytest.raises(AttributeError):
        app.unknown  # noqa: B018
    assert app.predict.bind() is not None
    assert isinstance(copy.copy(app), Application)


def test_pickling_a_deployment_keeps_its_options() -> None:
    assert pickle.loads(pickle.dumps(DeploymentConfig(num_replicas=3))).num_replicas == 3


def test_an_unknown_option_names_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="unknown option 'num_replica'; did you mean 'num_replicas'"):
        parse_options({"num_replica": 3})
