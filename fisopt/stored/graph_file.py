"""Make a graph of known operators from torch.export's JSON.

An operator comes from a list, every name is replaced by one of ours, an argument is data.  Sizes
are not looked at: the graph computes them from its inputs as it runs.
"""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fisopt.errors import ExportError, shown
from fisopt.reading import MalformedError
from fisopt.stored.operators import operator_of

DTYPES: dict[int, torch.dtype] = {
    **dict(enumerate((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64), 1)),
    **dict(enumerate((torch.float16, torch.float32, torch.float64), 6)),
    **dict(enumerate((torch.complex32, torch.complex64, torch.complex128, torch.bool), 9)),
    13: torch.bfloat16,
    28: torch.uint16,
    29: torch.float8_e4m3fn,
    30: torch.float8_e5m2,
    31: torch.float8_e4m3fnuz,
    32: torch.float8_e5m2fnuz,
    34: torch.uint32,
    35: torch.uint64,
}
"""The numbers of dtypes in torch.export's JSON."""
_LAYOUTS = {7: torch.strided}
_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_SPECIAL = ("Infinity", "-Infinity", "NaN")
_DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


@dataclass(frozen=True)
class TensorForm:
    """What a program says of a tensor.

    Attributes:
        dtype: its type.
        shape: its sizes, None where they are open.
    """

    dtype: torch.dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class ProgramFile:
    """A program as a file says it.

    Attributes:
        graph: it, with weights as attributes ``weight_0``, ``weight_1``, ...
        weights: the name in the archive's configuration of each of them.
        inputs: what it takes, by name, in order.
        results: what it returns, in order.
    """

    graph: fx.Graph
    weights: tuple[tuple[str, str], ...]
    inputs: Mapping[str, TensorForm]
    results: tuple[TensorForm, ...]


@dataclass
class GraphReader:
    """Makes a graph from the JSON of a program.

    Attributes:
        said: the ``graph_module`` entry.
        any_library: whether the graph may call operators of other libraries than torch's ATen.
    """

    said: Any
    any_library: bool
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, fx.Node] = field(default_factory=dict)

    def read(self) -> ProgramFile:
        """Read it.

        Raises:
            ExportError: it calls what no graph of an export calls.
        """
        said, signature = self.said["graph"], self.said["signature"]
        inputs: dict[str, TensorForm] = {}
        weights: list[tuple[str, str]] = []
        for given, spec in zip(said["inputs"], signature["input_specs"], strict=True):
            name = given["as_tensor"]["name"]
            (kind, how), *_ = spec.items()
            if kind == "user_input":
                check_name(name)
                inputs[name] = self._form(name)
                self.keep(name, self.graph.placeholder(f"input_{len(inputs)}"))
                continue
            weights.append(_weight(kind, how))
            self.keep(name, self.graph.get_attr(f"weight_{len(weights) - 1}"))
        for node in said["nodes"]:
            self._call(node)
        results = [o["as_tensor"]["name"] for o in said["outputs"]]
        if any(set(spec) != {"user_output"} for spec in signature["output_specs"]):
            raise ExportError("the program changes what it is given, an artefact returns results")
        self.graph.output(tuple(self.values[name] for name in results))
        forms = tuple(map(self._form, results))
        return ProgramFile(self.graph, tuple(weights), inputs, forms)

    def keep(self, name: Any, node: fx.Node) -> None:
        """Note which node a value of the program is.

        Raises:
            ExportError: two have the name.
        """
        if not isinstance(name, str) or name in self.values:
            raise ExportError(f"the graph has two values with the name {shown(name)}")
        self.values[name] = node

    def _form(self, name: str) -> TensorForm:
        said = self.said["graph"]["tensor_values"][name]
        return TensorForm(DTYPES[said["dtype"]], tuple(s.get("as_int") for s in said["sizes"]))

    def _call(self, said: Any) -> None:
        target = operator_of(said["target"], any_library=self.any_library)
        args, kwargs = _arguments(
            target, [(a["name"], a.get("kind"), self.value(a["arg"])) for a in said["inputs"]]
        )
        self._outputs(self.graph.call_function(target, args, kwargs), said["outputs"])

    def _outputs(self, node: fx.Node, said: Sequence[Any]) -> None:
        """Name the values that an operator returns: one, or several in a tuple or a list."""
        if len(said) == 1:
            (kind, value), *_ = said[0].items()
            if kind == "as_tensors":
                self._items(node, [{"as_tensor": x} for x in value])
            elif kind != "as_none":
                self.keep(_name_of(said[0]), node)
        else:
            self._items(node, said)

    def _items(self, node: fx.Node, said: Sequence[Any]) -> None:
        for i, each in enumerate(said):
            if "as_none" in each:
                continue
            item = self.graph.call_function(operator.getitem, (node, i))
            if "as_tensors" in each:
                self._items(item, [{"as_tensor": x} for x in each["as_tensors"]])
            else:
                self.keep(_name_of(each), item)

    def value(self, said: Any) -> Any:
        """An argument of an operator."""
        (kind, value), *more = said.items()
        if more or kind not in _ARGUMENTS:
            raise ExportError(f"the graph passes {shown(said)}, which is no argument of data")
        return _ARGUMENTS[kind](self, value)

    def number(self, said: Any) -> Any:
        """A size, or a number that the graph computes from sizes."""
        (kind, value), *_ = said.items()
        return self.values[value] if kind == "as_name" else plain(value, int, float, bool)

    def optional(self, said: Any) -> fx.Node | None:
        """A tensor, or none."""
        return None if "as_none" in said else self.values[said["as_tensor"]["name"]]


def _list_of(*kinds: type) -> Callable[[GraphReader, Any], list[Any]]:
    return lambda _, value: [plain(x, *kinds) for x in value]


def _one_of(*kinds: type) -> Callable[[GraphReader, Any], Any]:
    return lambda _, value: plain(value, *kinds)


_ARGUMENTS: dict[str, Callable[[GraphReader, Any], Any]] = {
    "as_none": lambda _, value: None,
    "as_tensor": lambda reader, value: reader.values[value["name"]],
    "as_tensors": lambda reader, value: [reader.values[x["name"]] for x in value],
    "as_optional_tensor": lambda reader, value: reader.optional(value),
    "as_optional_tensors": lambda reader, value: [reader.optional(x) for x in value],
    "as_int": _one_of(int),
    "as_ints": _list_of(int),
    "as_float": lambda _, value: _float(value),
    "as_floats": lambda _, value: [_float(x) for x in value],
    "as_bool": _one_of(bool),
    "as_bools": _list_of(bool),
    "as_string": _one_of(str),
    "as_strings": _list_of(str),
    "as_complex": lambda _, value: complex(value["real"], value["imag"]),
    "as_sym_int": lambda reader, value: reader.number(value),
    "as_sym_ints": lambda reader, value: [reader.number(x) for x in value],
    "as_sym_float": lambda reader, value: reader.number(value),
    "as_sym_floats": lambda reader, value: [reader.number(x) for x in value],
    "as_sym_bool": lambda reader, value: reader.number(value),
    "as_sym_bools": lambda reader, value: [reader.number(x) for x in value],
    "as_scalar_type": lambda _, value: DTYPES[value],
    "as_memory_format": lambda _, value: _FORMATS[value],
    "as_layout": lambda _, value: _LAYOUTS[value],
    "as_device": lambda _, value: device_of(value),
}
"""The kinds of arguments that data has: no graphs, no operators and no objects."""


def _arguments(
    target: Callable[..., Any], given: list[tuple[str, int | None, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by place and by name, those of an operator of torch checked against its schema."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return tuple(value for _, _, value in given), {}
    named = {name: value for name, _, value in given}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for place, argument in enumerate(schema.arguments):
        if argument.name not in named:
            if not argument.has_default_value():
                raise ExportError(f"the graph calls {target} without its {argument.name}")
        elif argument.kwarg_only or len(args) < place:
            kwargs[argument.name] = named.pop(argument.name)
        else:
            args.append(named.pop(argument.name))
    if named or any(map(keyword.iskeyword, kwargs)):
        raise ExportError(f"the graph calls {target} with {shown([*named, *kwargs])}")
    return tuple(args), kwargs


def _name_of(said: Any) -> Any:
    """The name of a value that an operator returns."""
    (kind, value), *_ = said.items()
    if kind == "as_tensor":
        return value["name"]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return value["as_name"]
    raise ExportError(f"the graph has the result {shown(said)}, which is no result of data")


def check_name(name: object) -> None:
    """Insist on a name that may stand in code.

    Raises:
        ExportError: it is another text, or none.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ExportError(f"the graph has the input {shown(name)}, wanted a name")


def _weight(kind: str, how: Any) -> tuple[str, str]:
    """The name of a weight, and whether it is with the weights or with the constants."""
    if kind == "parameter":
        return how["parameter_name"], "weight"
    if kind == "buffer":
        return how["buffer_name"], "weight" if how["persistent"] else "constant"
    if kind == "tensor_constant":
        return how["tensor_constant_name"], "constant"
    raise ExportError(f"the graph takes {shown(kind)}, wanted tensors and weights")


def plain(value: Any, *kinds: type) -> Any:
    """A value that must be of one of some types.

    Raises:
        MalformedError: it is of another.
    """
    if type(value) not in kinds:
        raise MalformedError(f"got {shown(value)}, wanted {' or '.join(k.__name__ for k in kinds)}")
    return value


def _float(value: Any) -> float:
    return float(value if value in _SPECIAL else plain(value, int, float))


def device_of(said: Any) -> torch.device:
    """A device of the kinds that torch has by itself.

    Raises:
        ExportError: it is of another.
    """
    kind, index = said["type"], said["index"]
    if kind not in _DEVICES or type(index) not in (int, type(None)):
        raise ExportError(f"the graph names the device {shown(said)}")
    return torch.device(kind) if index is None else torch.device(kind, index)
