"""fisopt: graph rewriting that makes video diffusion transformers faster, without training."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fisopt.versions import FISOPT

__version__ = FISOPT

if TYPE_CHECKING:
    from fisopt.public import *  # noqa: F403
else:
    # Imported when the first name is used, so that `fisopt --help` answers without torch.

    def __getattr__(name: str) -> Any:
        if name == "models":  # which `public` itself needs
            return import_module("fisopt.models")
        public = import_module("fisopt.public")
        if name != "__all__" and name not in public.__all__:
            raise AttributeError(f"module 'fisopt' has no attribute {name!r}")
        return getattr(public, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("fisopt.public").__all__})
