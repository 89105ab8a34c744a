"""Artefacts that try to run code, each made from a whole one with digests that fit.

Whatever runs writes the file ``ran`` in the folder, or imports the module ``canary``, which does.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from fisopt.artefact import onnx_file
from fisopt.artefact.digests import EXTRA, digests
from tests.hostile.archives import GRAPH, manifest_in, packed, parts_of, sealed

WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Payload:
    """What unpickles to a call that writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


def canary(folder: Path) -> None:
    """Write a module that leaves a mark where it is imported."""
    mark = str(folder / "ran")
    text = f"import enum\nopen({mark!r}, 'w')\nclass Word(enum.Enum):\n    yes = 1\n"
    (folder / "canary.py").write_text(text)


def archives(whole: Path, folder: Path) -> Iterator[Path]:
    """Crafted ``.pt2`` files."""
    mark = folder / "ran"
    code = f"open({str(mark)!r}, 'w')"
    for name, change in _changes(mark, code).items():
        parts = parts_of(whole)
        manifest = manifest_in(parts)
        change(parts, manifest)
        yield packed(folder / f"{name}.pt2", parts, manifest)


def models(whole: Path, folder: Path) -> Iterator[Path]:
    """Crafted ONNX files: an empty model with the manifest of an archive, but for its results."""
    for name, tree in _TREES.items():
        manifest = manifest_in(parts_of(whole))
        manifest["format"] = "onnx"
        manifest["call"]["output"] = json.dumps([1, tree])
        path = folder / f"{name}.onnx"
        path.write_bytes(b"\x08\x0a")
        manifest["variants"][0]["parts"] = digests("onnx", path)
        onnx_file.append(path, sealed(manifest))
        yield path


Change = Callable[[dict[str, bytes], Any], None]
_LEAF = {"type": None, "context": None, "children_spec": []}
_TREES: dict[str, Any] = {
    "tree_namedtuple": {
        "type": "collections.namedtuple",
        "context": json.dumps("canary.Word"),
        "children_spec": [_LEAF],
    },
    "tree_enum": {
        "type": "builtins.dict",
        "context": json.dumps([{"__enum__": True, "fqn": "canary:Word", "name": "yes"}]),
        "children_spec": [_LEAF],
    },
    "tree_default": {
        "type": "collections.defaultdict",
        "context": json.dumps(
            {
                "default_factory_module": "canary",
                "default_factory_name": "Word",
                "dict_context": ["a"],
            }
        ),
        "children_spec": [_LEAF],
    },
    "tree_class": {"type": "canary.Word", "context": '["yes"]', "children_spec": [_LEAF]},
    "tree_system": {"type": "os.system", "context": '["echo"]', "children_spec": [_LEAF]},
}


def _changes(mark: Path, code: str) -> dict[str, Change]:
    pickled = pickle.dumps(Payload(mark))
    saved = io.BytesIO()
    torch.save(Payload(mark), saved)
    changes: dict[str, Change] = {
        "weight_pickled": _entry(WEIGHTS, "path_name", saved.getvalue(), use_pickle=True),
        "constant_pickled": _added("tensor_9", saved.getvalue()),
        "constant_opaque": _added("opaque_obj_0", pickled),
        "constant_custom": _added("custom_obj_0", saved.getvalue()),
        "inputs_pickled": _part("data/sample_inputs/model.pt", saved.getvalue()),
        "legacy_weights": _part("data/weights/model.pt", saved.getvalue()),
        "legacy_constants": _part("data/constants/model.pt", saved.getvalue()),
        "native": _part("data/aotinductor/model/model.so", b"\x7fELF"),
        "source": _part("code/canary.py", code.encode()),
        "outside": _part("../canary.py", code.encode()),
        "second_manifest": _part(f"more/{EXTRA}", b"{}"),
        "path_outside": _entry(WEIGHTS, "path_name", None, path_name="../../canary.py"),
        "path_of_no_text": _entry(WEIGHTS, "path_name", None, path_name={}),
        "weight_without_end": _entry(WEIGHTS, "path_name", None, tensor_meta={"sizes": []}),
        "guards": _json(lambda said: said.update(guards_code=[code])),
        "size": _graph(lambda g: g["sym_int_values"].update(n={"as_expr": {"expr_str": code}})),
        "range": _json(
            lambda said: said.update(range_constraints={code: {"min_val": 1, "max_val": 2}})
        ),
        "verifier": _json(lambda said: said.update(verifiers=["canary"])),
        "input_name": _renamed(f"video=({code})"),
        "value_name": _value_named(f"x\n    {code}\n    y"),
        "weight_name": _weight_named(f"a') or {code} or ('"),
        "subgraph": _argument({"as_graph": {"name": "sub", "graph": {}}}),
        "operator": _argument({"as_operator": "torch.hub.load"}),
        "object": _argument({"as_custom_obj": {"name": "x", "class_fqn": "canary.Word"}}),
        "stack": _graph(
            lambda g: g["nodes"][0]["metadata"].update(
                source_fn_stack="x,torch.hub.load", custom=json.dumps({"a": code})
            )
        ),
        "fields": _module(
            lambda m: m.update(treespec_namedtuple_fields={"canary.Word": {"field_names": ["a"]}})
        ),
        "dtype": lambda _, manifest: manifest["model"].update(dtype="_inductor"),
        "device": lambda _, manifest: manifest["model"].update(device=code),
        "shape": lambda _, manifest: manifest["call"]["results"][0].update(shape=[code]),
    }
    for target in (
        *(
            "torch.load",
            "torch.hub.load",
            "torch.ops.load_library",
            "torch.serialization.pickle.loads",
        ),
        *("torch.ops.aten.from_file.default", "torch.ops.aten._print.default", "_operator.call"),
        *("torch._dynamo.exec", "math.__loader__.load_module", "#canary:run", "builtins.eval"),
        *("torch.ops.aten.resize_.default", "torch.ops.canary.run.default", "canary.run"),
        *("torch.ops.__dict__.get.default", "torch.ops.higher_order.cond", "torch.os.system"),
    ):
        changes[f"calls_{target.replace('.', '_').replace('#', '_')}"] = _calls(target)
    for name, tree in _TREES.items():
        changes[name] = _tree("output", tree)
        changes[f"{name}_taken"] = _tree("structure", tree)
        changes[f"{name}_inside"] = _inside(tree)
    return changes


def _part(name: str, data: bytes) -> Change:
    return lambda parts, _: parts.update({name: data})


def _json(change: Callable[[Any], Any]) -> Change:
    def done(parts: dict[str, bytes], manifest: Any) -> None:
        said = json.loads(parts[GRAPH])
        change(said)
        parts[GRAPH] = json.dumps(said).encode()

    return done


def _module(change: Callable[[Any], Any]) -> Change:
    return _json(lambda said: change(said["graph_module"]))


def _graph(change: Callable[[Any], Any]) -> Change:
    return _module(lambda said: change(said["graph"]))


def _calls(target: str) -> Change:
    return _graph(lambda g: g["nodes"][0].update(target=target))


def _argument(value: Any) -> Change:
    return _graph(lambda g: g["nodes"][0]["inputs"][0].update(arg=value))


def _renamed(name: str) -> Change:
    def done(parts: dict[str, bytes], manifest: Any) -> None:
        old = manifest["call"]["tensors"][0]["name"]
        manifest["call"]["tensors"][0]["name"] = name
        new = json.dumps(name).encode()
        parts[GRAPH] = parts[GRAPH].replace(json.dumps(old).encode(), new)

    return done


def _value_named(name: str) -> Change:
    def done(parts: dict[str, bytes], manifest: Any) -> None:
        first = json.loads(parts[GRAPH])["graph_module"]["graph"]["nodes"][0]["name"]
        old, new = json.dumps(first).encode(), json.dumps(name).encode()
        parts[GRAPH] = parts[GRAPH].replace(old, new)

    return done


def _weight_named(name: str) -> Change:
    def done(parts: dict[str, bytes], manifest: Any) -> None:
        old = next(iter(json.loads(parts[WEIGHTS])["config"]))
        for part in (WEIGHTS, GRAPH):
            parts[part] = parts[part].replace(json.dumps(old).encode(), json.dumps(name).encode())

    return done


def _entry(config: str, key: str, data: bytes | None, **changed: Any) -> Change:
    """Change the configuration of the first weight, and what is stored for it."""

    def done(parts: dict[str, bytes], manifest: Any) -> None:
        said = json.loads(parts[config])
        first = next(iter(said["config"].values()))
        if data is not None:
            parts[config.rpartition("/")[0] + "/" + first[key]] = data
        first.update(changed)
        parts[config] = json.dumps(said).encode()

    return done


def _added(part: str, data: bytes) -> Change:
    """A constant that is no tensor, in the configuration and in the graph."""

    def done(parts: dict[str, bytes], manifest: Any) -> None:
        said = json.loads(parts[CONSTANTS])
        said["config"]["x"] = {
            "path_name": part,
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }
        parts[CONSTANTS] = json.dumps(said).encode()
        parts[f"data/constants/{part}"] = data
        module = json.loads(parts[GRAPH])
        spec = module["graph_module"]["signature"]["input_specs"][0]
        arg = copy.deepcopy(spec["parameter"]["arg"])
        module["graph_module"]["signature"]["input_specs"][0] = {
            "tensor_constant": {"arg": arg, "tensor_constant_name": "x"}
        }
        parts[GRAPH] = json.dumps(module).encode()

    return done


def _tree(entry: str, tree: Any) -> Change:
    return lambda _, manifest: manifest["call"].update({entry: json.dumps([1, tree])})


def _inside(tree: Any) -> Change:
    def change(module: Any) -> None:
        entry = module["module_call_graph"][0]["signature"]
        entry["in_spec"] = entry["out_spec"] = json.dumps([1, tree])

    return _module(change)
