"""For mypy, which alone imports it: types of calls by a method's name, and of `bind` of classes under `@deployment`.

How this works: `handle.predict` of a `DeploymentHandle[Model]` becomes a `DeploymentHandle[NamedMethod[Model, "predict"]]`, which
`options` keeps; a call of its `remote` is checked with the signature of `Model.predict`. A class under `@deployment` gets
the methods of a deployment, and calls of them are checked as those of a `Deployment` of its constructor's parameters.
"""

from collections.abc import Callable
from functools import partial

from mypy.checker import TypeChecker
from mypy.errorcodes import MISC
from mypy.lookup import lookup_fully_qualified
from mypy.maptype import map_instance_to_supertype
from mypy.nodes import ARG_STAR, ARG_STAR2, Argument, FuncDef, TypeInfo, Var
from mypy.plugin import (
    AttributeContext,
    CheckerPluginInterface,
    ClassDefContext,
    MethodContext,
    MethodSigContext,
    Plugin,
)
from mypy.plugins.common import add_method_to_class
from mypy.server.trigger import make_trigger
from mypy.types import (
    AnyType,
    CallableType,
    FunctionLike,
    Instance,
    LiteralType,
    NoneType,
    Overloaded,
    Parameters,
    ParamSpecType,
    ProperType,
    TupleType,
    Type,
    TypeOfAny,
    UnionType,
    UnpackType,
    get_proper_type,
)

_DECORATOR = "servd.api.deployment"
_DEPLOYMENT = "servd.app.deployment.Deployment"
_OF_DEPLOYMENTS = frozenset({"bind", "options"})
_MARK = "servd"
"""Key in what mypy keeps of a class under `@deployment`."""
_STREAMING = "servd.calls.method_types.StreamingHandle"
_NAMED_METHOD = "servd.calls.method_types.NamedMethod"
_RESPONSE = "servd.calls.response.DeploymentResponse"
_RESPONSES = "servd.calls.response.DeploymentResponseGenerator"
_HANDLES = frozenset({"servd.handle.DeploymentHandle", "servd.handle.RayServeSyncHandle", _STREAMING})
_LOOK_UP = frozenset({"servd.handle._Handle", _STREAMING})
"""The classes whose `__getattr__` handles have."""
_GENERATORS = frozenset({"typing.Generator", "typing.AsyncGenerator"})
_ITERATORS = frozenset({"typing.Iterator", "typing.AsyncIterator"}) | _GENERATORS
_ITERABLES = frozenset({"typing.Iterable", "typing.AsyncIterable"})


class ServdPlugin(Plugin):
    """Knows deployments, and what their handles know of methods that go by their names."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        """For `@deployment`."""
        return _decorated if fullname == _DECORATOR else None

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """For `handle.predict`."""
        owner, _, name = fullname.rpartition(".")
        return partial(_named, name) if owner in _LOOK_UP else None

    def get_method_hook(self, fullname: str) -> Callable[[MethodContext], Type] | None:
        """For `handle.options(method_name="predict")`."""
        owner, _, name = fullname.rpartition(".")
        return _with_options if name == "options" and owner in _HANDLES else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], FunctionLike] | None:
        """For `.remote(...)`, and `bind` of a class."""
        owner, _, name = fullname.rpartition(".")
        if name in _OF_DEPLOYMENTS and not owner.startswith("servd."):
            return partial(_of_class, name)
        return _call if name == "remote" and owner in _HANDLES else None


def plugin(version: str) -> type[Plugin]:  # noqa: ARG001 - mypy's
    """What mypy asks for."""
    return ServdPlugin


def _decorated(context: ClassDefContext) -> bool:
    anything = AnyType(TypeOfAny.special_form)
    arguments = [
        Argument(Var(name, anything), anything, None, kind)
        for name, kind in (("args", ARG_STAR), ("kwargs", ARG_STAR2))
    ]
    context.cls.info.metadata[_MARK] = {}
    for name in _OF_DEPLOYMENTS - context.cls.info.names.keys():
        add_method_to_class(context.api, context.cls, name, arguments, anything, is_staticmethod=True)
    return True


def _of_class(name: str, context: MethodSigContext) -> FunctionLike:
    made = context.type
    # a class that is generic, or has several constructors, stays open
    if not isinstance(made, CallableType) or not made.is_type_obj() or made.variables:
        return context.default_signature
    model = get_proper_type(made.ret_type)
    if not isinstance(model, Instance) or _MARK not in model.type.metadata:
        return context.default_signature
    _needs(context.api, f"{model.type.fullname}.__init__")
    parameters = Parameters(made.arg_types, made.arg_kinds, made.arg_names)
    member = _member(context.api, _instance(context.api, _DEPLOYMENT, parameters, model), name, context)
    return member if isinstance(member, FunctionLike) else context.default_signature


def _named(name: str, context: AttributeContext) -> Type:
    handle = get_proper_type(context.default_attr_type)
    if not isinstance(handle, Instance) or (model := _served(handle)) is None:
        return context.default_attr_type
    return _handle_of(handle, model, name, context)


def _with_options(context: MethodContext) -> Type:
    handle = get_proper_type(context.default_return_type)
    if "method_name" not in context.callee_arg_names or not isinstance(handle, Instance):
        return context.default_return_type
    given = context.arg_types[context.callee_arg_names.index("method_name")]
    name = get_proper_type(given[0]) if given else NoneType()
    if isinstance(name, NoneType) or (model := _served(handle)) is None:
        return context.default_return_type
    literal = name.last_known_value if isinstance(name, Instance) else name
    known = literal.value if isinstance(literal, LiteralType) else None
    return _handle_of(handle, model, known if isinstance(known, str) else None, context)


def _handle_of(handle: Instance, model: Instance, name: str | None, context: AttributeContext | MethodContext) -> Type:
    """The handle to a method. name: None where it is not known until the program runs."""
    text = _instance(context.api, "builtins.str")
    if name is None:
        return handle.copy_modified(args=[_instance(context.api, _NAMED_METHOD, model, text)])
    member = _member(context.api, model, name, context)
    if isinstance(member, AnyType) and member.type_of_any == TypeOfAny.from_error:
        return member
    named = _instance(context.api, _NAMED_METHOD, model, LiteralType(name, text))
    return handle.copy_modified(args=[named])


def _call(context: MethodSigContext) -> FunctionLike:
    model, name = _served(context.type), _method(context.type)
    # an ingress has routes in the place of `__call__`, of which classes do not tell
    if model is None or name is None or (name == "__call__" and model.type.get(name) is None):
        return context.default_signature
    member = _member(context.api, model, name, context)
    if isinstance(member, Instance) and member.type.get("__call__") is not None:
        member = _member(context.api, member, "__call__", context)
    if isinstance(member, Overloaded):
        return Overloaded([_signature(item, name, context) for item in member.items])
    if isinstance(member, CallableType):
        return _signature(member, name, context)
    if not isinstance(member, AnyType):
        context.api.fail(f'"{name}" of "{model.type.name}" is no method', context.context, code=MISC)
    return context.default_signature


def _signature(method: CallableType, name: str, context: MethodSigContext) -> CallableType:
    """A method as its callers see it through a handle: responses are arguments too, and a response is what it gives."""
    arguments = [
        kind
        if isinstance(get_proper_type(kind), AnyType | ParamSpecType | UnpackType)
        or (method.unpack_kwargs and method.arg_kinds[place] == ARG_STAR2)
        else UnionType.make_union([kind, _instance(context.api, _RESPONSE, kind)])
        for place, kind in enumerate(method.arg_types)
    ]
    return method.copy_modified(
        arg_types=arguments, ret_type=_given(method, name, context), type_guard=None, type_is=None
    )


def _given(method: CallableType, name: str, context: MethodSigContext) -> Type:
    """What `remote` gives. A generator that is called as a function, or the reverse, is an error."""
    value = get_proper_type(method.ret_type)
    if isinstance(value, Instance) and (awaited := _as(value, "typing.Coroutine")) is not None:
        value = get_proper_type(awaited.args[2])
        is_generator = False
    else:
        is_generator = isinstance(method.definition, FuncDef) and method.definition.is_generator
    kinds = {info.fullname for info in value.type.mro} if isinstance(value, Instance) else set()
    if not (isinstance(context.type, Instance) and context.type.type.fullname == _STREAMING):
        if is_generator or kinds & _GENERATORS:
            context.api.fail(
                f'"{name}" is a generator: call it with "options(stream=True)"', context.context, code=MISC
            )
        return _instance(context.api, _RESPONSE, value)
    item: Type = AnyType(TypeOfAny.special_form)
    if isinstance(value, Instance) and (is_generator or kinds & _ITERATORS or value.type.fullname in _ITERABLES):
        sequence = _as(value, "typing.AsyncIterable") or _as(value, "typing.Iterable")
        item = sequence.args[0] if sequence is not None else item
    elif isinstance(value, Instance | NoneType | TupleType | LiteralType) and kinds != {"builtins.object"}:
        context.api.fail(f'"{name}" is no generator: call it without "stream=True"', context.context, code=MISC)
    return _instance(context.api, _RESPONSES, item)


def _as(value: Instance, base: str) -> Instance | None:
    """A value's type as that of a class that it inherits from."""
    info = next((info for info in value.type.mro if info.fullname == base), None)
    return None if info is None else map_instance_to_supertype(value, info)


def _served(handle: ProperType) -> Instance | None:
    """The class whose methods a handle has, where it is known."""
    of = _parameter(handle)
    if isinstance(of, Instance) and of.type.fullname == _NAMED_METHOD:
        of = get_proper_type(of.args[0])
    return of if isinstance(of, Instance) else None


def _method(handle: ProperType) -> str | None:
    """The method that a handle calls, where it is known."""
    of = _parameter(handle)
    if not isinstance(of, Instance) or of.type.fullname != _NAMED_METHOD:
        return "__call__"
    name = get_proper_type(of.args[1])
    return name.value if isinstance(name, LiteralType) and isinstance(name.value, str) else None


def _parameter(handle: ProperType) -> ProperType | None:
    if isinstance(handle, Instance) and handle.type.fullname in _HANDLES and len(handle.args) == 1:
        return get_proper_type(handle.args[0])
    return None


def _instance(api: CheckerPluginInterface, fullname: str, *parameters: Type) -> Instance:
    assert isinstance(api, TypeChecker)
    found = lookup_fully_qualified(fullname, api.modules, raise_on_missing=True)
    assert found is not None
    assert isinstance(found.node, TypeInfo)
    return Instance(found.node, parameters)


def _member(
    api: CheckerPluginInterface,
    of: Instance,
    name: str,
    context: AttributeContext | MethodContext | MethodSigContext,
) -> ProperType:
    """The type of a member of an instance; mypy says where there is none."""
    assert isinstance(api, TypeChecker)
    _needs(api, f"{of.type.fullname}.{name}")
    return get_proper_type(api.expr_checker.analyze_external_member_access(name, of, context.context))


def _needs(api: CheckerPluginInterface, fullname: str) -> None:
    """For the daemon of mypy: what is checked now counts on a method that no expression names."""
    assert isinstance(api, TypeChecker)
    api.tree.plugin_deps.setdefault(make_trigger(fullname), set()).add(api.tscope.current_full_target())
