"""Sign an artefact that is whole."""

from __future__ import annotations

from pathlib import Path

from fisopt.artefact.loader import examined
from fisopt.artefact.signature import write_signature
from fisopt.checked import path_of


def sign(path: Path | str, secret_key: Path | str, password: str | None = None) -> Path:
    """Write a signature next to an artefact, so that others can verify who made it.

    `sign` first compares the artefact with its manifest and does not sign a damaged one. It
    replaces an existing signature.

    Args:
        path: the artefact that `fisopt.export` wrote.
        secret_key: the file of a minisign key.
        password: the key's password, if it has one.

    Returns:
        The file of the signature: ``path`` with ``.minisig`` appended.

    Raises:
        ExportError: the path is not an artefact or is damaged, the key is wrong, or py-minisign is
            missing (``pip install 'fisopt[sign]'``).
    """
    path = path_of("sign: path", path)
    examined(path, trust="code")  # nothing is run
    return write_signature(path, secret_key, password)
