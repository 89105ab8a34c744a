"""Read the program in a ``.pt2`` archive as data: its parts, its graph, its weights.

torch.export's own reader unpickles parts of an archive, evaluates the expressions and the guards
that are in it as Python, writes the names in it into code, and looks up functions by name.  This
one does none of that: `fisopt.stored.graph_file` makes the same graph from the same JSON, and a
weight is the bytes of a part.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fisopt.artefact.package import Package
from fisopt.errors import ExportError, FisoptError, shown
from fisopt.reading import MIB, json_value
from fisopt.stored.graph_file import DTYPES, GraphReader, ProgramFile, device_of, plain

SCHEMA = 8
"""The major version of torch.export's JSON that this reads."""
GRAPH = "models/model.json"
WEIGHTS = ("data/weights/", "model_weights_config.json", "weight_")
CONSTANTS = ("data/constants/", "model_constants_config.json", "tensor_")
_MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_OTHERS = {".data/version", ".data/serialization_id"}
_EMPTY = "data/sample_inputs/model.pt"
"""Where torch.export keeps the exported call, pickled; an artefact is written without it."""
LARGEST_GRAPH = 256 * MIB
MOST = 8_000_000
"""Values in a graph's JSON: about fifty an operator."""
_MALFORMED = (
    *(FisoptError, LookupError, TypeError, ValueError, AttributeError, RuntimeError),
    ArithmeticError,
)
"""What reading a value of another form than was expected raises."""


def check_parts(package: Package, extra: str, where: str) -> None:
    """Refuse an archive with other parts than an export has.

    Raises:
        ExportError: it holds pickles, native code or something else that no program needs.
    """
    known = {GRAPH, extra, _EMPTY, *_MARKS, *_OTHERS}
    for folder, config, prefix in (WEIGHTS, CONSTANTS):
        known |= {folder + config}
        known |= {n for n in package.parts if _numbered(n.removeprefix(folder), prefix, n)}
    if others := sorted(package.parts.keys() - known):
        raise ExportError(
            f"{where} holds {shown(others[0])}, which fisopt.export never writes, so fisopt does "
            "not read it: export it again"
        )
    if package.parts.get(_EMPTY):
        raise ExportError(
            f"{where} holds a pickle, {_EMPTY}, which this version of fisopt never writes, so "
            "fisopt does not read it: export it again"
        )
    for name, value in _MARKS.items():
        if package.read(name, 64) != value:
            raise ExportError(f"{where}: {name} is not {value.decode()!r}; export it again")


def _numbered(name: str, prefix: str, whole: str) -> bool:
    return name != whole and name.startswith(prefix) and name[len(prefix) :].isdecimal()


def read_program(package: Package, where: str, *, any_library: bool = False) -> ProgramFile:
    """Read a program without its weights.

    Args:
        package: the archive.
        where: its name in errors.
        any_library: whether the graph may call operators of other libraries than torch's ATen.

    Raises:
        ExportError: it is malformed, or calls what no graph of an export calls.
    """
    try:
        said = json_value(package.read(GRAPH, LARGEST_GRAPH), MOST)
        _check_version(said["schema_version"]["major"])
        return GraphReader(said["graph_module"], any_library).read()
    except ExportError as error:
        raise ExportError(f"{where} cannot be loaded: {error}") from error
    except _MALFORMED as error:
        raise ExportError(
            f"{where} cannot be loaded: its graph is malformed: {type(error).__name__}: {error}; "
            "copy or export it again"
        ) from error


def _check_version(major: object) -> None:
    if major != SCHEMA:
        raise ExportError(
            f"it is of torch.export's schema {shown(major)}, this version of fisopt reads "
            f"{SCHEMA}; export it again"
        )


def read_module(package: Package, program: ProgramFile, where: str) -> fx.GraphModule:
    """Make a program's module, with the weights.

    Raises:
        ExportError: a weight is missing, or is not what the configuration says.
    """
    root = nn.Module()
    try:
        held = {kind: _Weights(package, kind) for kind in (WEIGHTS, CONSTANTS)}
        for i, (name, source) in enumerate(program.weights):
            value, is_parameter = held[CONSTANTS if source == "constant" else WEIGHTS].get(name)
            if is_parameter:
                root.register_parameter(f"weight_{i}", nn.Parameter(value, requires_grad=False))
            else:
                root.register_buffer(f"weight_{i}", value)
    except _MALFORMED as error:
        raise ExportError(
            f"{where} cannot be loaded: its weights are malformed: {type(error).__name__}: "
            f"{error}; copy or export it again"
        ) from error
    return fx.GraphModule(root, program.graph)


class _Weights:
    """The tensors of a folder of an archive; several may share one part."""

    def __init__(self, package: Package, kind: tuple[str, str, str]) -> None:
        self.folder, config, self.prefix = kind
        self.package = package
        self.config = json_value(package.read(self.folder + config, LARGEST_GRAPH))["config"]
        self.parts: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, name: str) -> tuple[Tensor, bool]:
        """A tensor, and whether it is a parameter."""
        said = self.config[name]
        part, form = said["path_name"], said["tensor_meta"]
        if said["use_pickle"] or form is None or not _numbered(part, self.prefix, ""):
            raise ExportError(f"{shown(name)} is not stored as the bytes of a tensor")
        sizes, strides = ([plain(x["as_int"], int) for x in form[k]] for k in ("sizes", "strides"))
        place = (part, DTYPES[form["dtype"]], device_of(form["device"]))
        if place not in self.parts:
            self.parts[place] = self._flat(*place)
        offset = plain(form["storage_offset"]["as_int"], int)
        value = self.parts[place].as_strided(sizes, strides, offset)
        return value, plain(said["is_param"], bool)

    def _flat(self, part: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """All of a part as one row."""
        size = self.package.parts[self.folder + part]
        held = torch.empty(size, dtype=torch.uint8)
        if size:
            self.package.fill(self.folder + part, held.numpy().data)
        return held.view(dtype).to(device)
