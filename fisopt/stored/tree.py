"""The nesting of arguments and results as text, read back by a list of containers.

``torch.utils._pytree`` writes a nesting with the names of its classes, and looks them up again
when it reads one, which imports modules.  Here a name is looked up in a list of ours.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict
from typing import Any

from torch.utils import _pytree as pytree

from fisopt.errors import ExportError, shown
from fisopt.reading import MalformedError, json_value

OUTPUTS = {
    f"diffusers.models.{module}.{name}": f"diffusers.models.{module}"
    for module, name in (
        ("modeling_outputs", "Transformer2DModelOutput"),
        ("transformers.transformer_anyflow_far", "AnyFlowFARTransformerOutput"),
        ("transformers.transformer_cosmos3", "Cosmos3OmniTransformerOutput"),
        ("transformers.transformer_kandinsky6", "Kandinsky6TransformerOutput"),
        ("transformers.transformer_ltx2", "AudioVisualModelOutput"),
        ("transformers.transformer_temporal", "TransformerTemporalModelOutput"),
    )
}
"""The classes that video transformers of diffusers return, and their modules."""
_MAPPINGS: dict[str, type[dict[Any, Any]]] = {
    "builtins.dict": dict,
    "collections.OrderedDict": OrderedDict,
}
_SEQUENCES: dict[str, type[tuple[Any, ...] | list[Any]]] = {
    "builtins.tuple": tuple,
    "builtins.list": list,
}


def structure_text(structure: pytree.TreeSpec) -> str:
    """The nesting of values as text.

    Raises:
        ExportError: it has a type that torch does not know how to write.
    """
    try:
        return json.dumps(json.loads(pytree.treespec_dumps(structure)), sort_keys=True)
    except (NotImplementedError, TypeError) as error:
        raise ExportError(
            f"the arguments or results have a type that cannot be written: {error}; pass "
            "return_dict=False in example_inputs, and plain containers"
        ) from error


def structure_of(text: str, *, any_class: bool = False) -> pytree.TreeSpec:
    """The inverse of `structure_text`; no class is taken by its name in the text.

    Args:
        text: the nesting.
        any_class: take every class that this process has registered with torch, by its name.

    Raises:
        ExportError: it holds something else than tuples, lists, dicts and the outputs of
            diffusers in `OUTPUTS`, or is malformed.
    """
    try:
        form, said = json_value(text)
        if form != 1:
            raise MalformedError(f"of form {shown(form)}, wanted 1")
        structure: pytree.TreeSpec = pytree.tree_structure(_example(said, any_class))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ExportError(f"a nesting of values is malformed: {error}") from error
    return structure


def _example(said: Any, any_class: bool) -> Any:
    """Values of some nesting, all of them 0."""
    name, context = said["type"], said["context"]
    children = [_example(child, any_class) for child in said["children_spec"]]
    if name is None:
        return 0
    if name in _SEQUENCES:
        return _SEQUENCES[name](children)
    if name not in _MAPPINGS and name not in OUTPUTS:
        return _registered(said, any_class)
    keys = json_value(context)
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise MalformedError(f"not one of names: {shown(keys)}")
    held = dict(zip(keys, children, strict=True))
    if name in _MAPPINGS:
        return _MAPPINGS[name](held)
    return getattr(importlib.import_module(OUTPUTS[name]), name.rpartition(".")[2])(**held)


def _registered(said: Any, any_class: bool) -> Any:
    """Values in a class that is not in the list."""
    name = said["type"]
    if not any_class:
        raise ExportError(
            f"the artefact returns a {shown(name)}, and data names no classes but tuple, list, "
            f"dict and {', '.join(known.rpartition('.')[2] for known in OUTPUTS)}: export it with "
            "return_dict=False in example_inputs; or, if you trust where it comes from, import the "
            "model's module and load it with trust='code' (--trust code)"
        )
    try:
        structure = pytree.treespec_loads(json.dumps([1, said]))
        return pytree.tree_unflatten([0] * structure.num_leaves, structure)
    except Exception as error:
        raise ExportError(
            f"the artefact returns a type that is not known here: {error}; import the model's "
            "module first"
        ) from error
