"""The recipe: passes with their options, and the model and the versions that they were made with.

A recipe is one file of plain YAML, with the schedules and mask tables of its passes in it::

    fisopt_recipe: 1
    model: {class: WanTransformer3DModel, config_sha256: 5f..., config: {num_layers: 30, ...}}
    versions: {fisopt: 0.1.0, torch: 2.13.0, diffusers: 0.42.1}
    passes:
    - name: FrameInterleave
      options: {stride: 2, blocks: '1:', ...}
    kernels: {linear: fp8, attention: cudnn}

Kernels stand there where something was chosen, in a recipe of form 2; ``tuned``, the figures with
which `fisopt.tune` found the passes, in one of form 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from fisopt.checked import Checked, flag, path_of
from fisopt.codegen.kernel_options import KernelOptions
from fisopt.errors import RecipeError, shown
from fisopt.files import written
from fisopt.passes.presets import resolve
from fisopt.reading import (
    MalformedError,
    check_readable,
    check_value,
    read_yaml,
    yaml_value,
)
from fisopt.recipe.identity import CONFIG_KEY, Identity
from fisopt.recipe.kernels import decode_kernels, encode_kernels
from fisopt.recipe.options import decode, encode
from fisopt.recipe.stores import Beside, Store
from fisopt.recipe.tuned import UNTUNED, Tuned, read_tuned
from fisopt.rewrite.pass_base import Pass
from fisopt.versions import versions

FORMAT = 3
"""The newest recipe format that this version reads."""
FROM_CONFIG = "config"
"""Instead of a path: read the recipe from the model's own configuration."""
_SOURCES = 'a Recipe, its path, its plain values or "config"'
_KEYS = {"fisopt_recipe", "model", "versions", "passes"}
_FORM = f"wanted {{{', '.join(sorted(_KEYS))}}}"


@dataclass(frozen=True)
class Recipe(metaclass=Checked):
    """The passes and kernels of an optimised model.

    Attributes:
        passes: the passes, in order.
        model: the model that the passes were chosen for.
        versions: the versions of the packages that made the recipe.
        source: where the recipe was read from, for errors.
        kernels: the kernels that were chosen.
        tuned: what tuning aimed at and reached: ``target``, ``steps``, ``prompts``, ``speed_up``,
            ``error``, ``psnr``; empty if the passes were not tuned.
    """

    passes: tuple[Pass, ...]
    model: Identity
    versions: Mapping[str, str] = field(default_factory=versions, compare=False)
    source: str = field(default="the recipe", compare=False)
    kernels: KernelOptions = field(default_factory=KernelOptions)
    tuned: Tuned = field(default_factory=lambda: UNTUNED)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", resolve(self.passes))

    @staticmethod
    def of(
        model: nn.Module,
        passes: Sequence[Pass | str],
        kernels: KernelOptions = KernelOptions(),  # noqa: B008 - it cannot change
        tuned: Tuned = UNTUNED,
    ) -> Recipe:
        """Make the recipe of a model from passes or presets, kernels and the result of tuning.

        Raises:
            OptionError: see `fisopt.optimize`.
        """
        return Recipe(resolve(passes), Identity.of(model), kernels=kernels, tuned=tuned)

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, complete in itself.

        Raises:
            RecipeError: an option of a pass cannot be written, or the recipe is larger than `load`
                accepts.
        """
        store, kernels = Store(), encode_kernels(self.kernels)
        return {
            "fisopt_recipe": 3 if self.tuned else 2 if kernels else 1,
            "model": self.model.plain(),
            "versions": dict(self.versions),
            "passes": [encode(pass_, store) for pass_ in self.passes],
            **({"kernels": kernels} if kernels else {}),
            **({"tuned": dict(self.tuned)} if self.tuned else {}),
        }

    @staticmethod
    def from_plain(said: Any, source: str, store: Store | None = None) -> Recipe:
        """The inverse of `plain`; it imports and runs nothing.

        Raises:
            RecipeError: this is not a recipe, has a newer format, or names something unknown here.
        """
        try:
            check_value(said)
        except MalformedError as error:
            raise RecipeError(f"{source} is no recipe: it is {error}") from error
        if not isinstance(said, Mapping) or "fisopt_recipe" not in said:
            got = sorted(map(str, said)) if isinstance(said, Mapping) else type(said).__name__
            raise RecipeError(f"{source} is no recipe: got {got}; {_FORM}")
        form = said["fisopt_recipe"]
        if type(form) is not int or not 1 <= form <= FORMAT:
            made = said.get("versions")
            by = made.get("fisopt", "unknown") if isinstance(made, Mapping) else "unknown"
            raise RecipeError(
                f"{source} is a recipe of form {form}, written by fisopt {by}; this version reads "
                f"forms 1 to {FORMAT}: update fisopt, or save the recipe with this version"
            )
        if set(said) - {"kernels", "tuned"} != _KEYS or not isinstance(said["passes"], list):
            raise RecipeError(f"{source}: got {sorted(map(str, said))}; {_FORM}")
        if not isinstance(said["versions"], Mapping):
            raise RecipeError(f"{source}: got versions={said['versions']!r}; {_FORM}")
        model = Identity.from_plain(said["model"], source)
        passes = tuple(decode(each, store or Store(), source) for each in said["passes"])
        kernels = decode_kernels(said.get("kernels", {}), source)
        tuned = read_tuned(said.get("tuned", {}), source)
        return Recipe(passes, model, dict(said["versions"]), source, kernels, tuned)

    def save(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the recipe, its schedules and its mask tables: one file.

        Args:
            path: where.
            force: replace an existing file.

        Returns:
            The path.

        Raises:
            ExportError: the path exists and ``force`` is not set, or writing failed; an existing
                file stays unchanged.
            RecipeError: an option of a pass cannot be written.
        """
        flag("Recipe.save: force", force)
        path, text = path_of("Recipe.save: path", path), as_yaml(self.plain())
        check_readable(path, text, yaml_value, RecipeError)
        with written(path, force=force) as beside:
            beside.write_bytes(text.encode("utf-8"))
        return path

    @staticmethod
    def load(path: Path | str) -> Recipe:
        """Read a recipe.

        Raises:
            RecipeError: this is not a recipe, has a newer format, one of its files is missing or
                has other content, or it names something unknown here.
            FileError: the file cannot be read.
        """
        path = path_of("Recipe.load: path", path)
        try:
            said = read_yaml(path)
        except MalformedError as error:
            raise RecipeError(f"{path} is no recipe: it is {error}") from error
        return Recipe.from_plain(said, str(path), Beside(path))

    @staticmethod
    def read(source: Recipe | Path | str | Mapping[str, Any], model: nn.Module) -> Recipe:
        """Read a recipe from any source and check that it is for this model.

        Args:
            source: a recipe, its path, its plain values, or "config" for the ``fisopt`` entry of
                the model's configuration.
            model: the model to apply it to.

        Raises:
            RecipeError: the recipe cannot be read, or is for another model.
        """
        if isinstance(source, Recipe):
            recipe = source
        elif source == FROM_CONFIG:
            config: Any = getattr(model, "config", None)
            if not isinstance(config, Mapping) or CONFIG_KEY not in config:
                raise RecipeError(
                    f"the config of {type(model).__name__} has no entry {CONFIG_KEY!r}; pass the "
                    "path of a recipe"
                )
            recipe = Recipe.from_plain(config[CONFIG_KEY], f"config[{CONFIG_KEY!r}]")
        elif isinstance(source, Mapping):
            recipe = Recipe.from_plain(source, "the recipe")
        elif isinstance(source, (str, Path)):
            recipe = Recipe.load(source)
        else:
            raise RecipeError(f"recipe: got {shown(source)}, wanted {_SOURCES}")
        recipe.model.check(model, recipe.source)
        return recipe


def as_yaml(said: Mapping[str, Any]) -> str:
    """The plain values of a recipe as YAML: rows of numbers in one line."""
    text: str = yaml.safe_dump(dict(said), sort_keys=False, default_flow_style=None)
    return text
