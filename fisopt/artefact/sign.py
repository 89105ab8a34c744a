"""Sign an artefact that is whole."""

from __future__ import annotations

from pathlib import Path

from fisopt.artefact.loader import examined
from fisopt.artefact.signature import write_signature
from fisopt.checked import path_of


def sign(path: Path | str, secret_key: Path | str, password: str | None = None) -> Path:
    """Write a signature beside an artefact, so that others can tell who made it.

    The artefact is compared with its manifest first: what is damaged is not signed.  A signature
    that is there is replaced.

    Args:
        path: what `fisopt.export` wrote.
        secret_key: the file of a key of minisign.
        password: of the key, if it has one.

    Returns:
        The file of the signature, ``path`` with ``.minisig`` behind.

    Raises:
        ExportError: it is no artefact, not whole, or the key is not right; or py-minisign is
            missing (``pip install 'fisopt[sign]'``).
    """
    path = path_of("sign: path", path)
    examined(path, trust="code")  # nothing is run
    return write_signature(path, secret_key, password)
