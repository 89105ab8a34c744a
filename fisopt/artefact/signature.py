"""Detached signatures: who made an artefact, in the format of minisign.

A digest in a file finds damage; whoever changes the file can write a new one.  A signature beside
it is made with a key that its maker keeps.  That of a folder is of its manifest, which holds the
digests of all that is in it.  The tool ``minisign`` reads and writes the same keys and signatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fisopt.artefact.manifest import FILE
from fisopt.checked import path_of
from fisopt.errors import ExportError, OptionError, shown
from fisopt.files import write
from fisopt.reading import opened, read_bytes

SUFFIX = ".minisig"
LARGEST = 1 << 12
"""Bytes of a key or a signature; they are a few lines."""
_KEY = re.compile(r"RW[0-9A-Za-z+/]{54}")


def signature_of(path: Path) -> Path:
    """Where the signature of an artefact is: beside it."""
    return path.with_name(path.name + SUFFIX)


def write_signature(path: Path, secret_key: Path | str, password: str | None = None) -> Path:
    """Sign an artefact as it is; a signature that is there is replaced.

    Args:
        path: the file or the folder.
        secret_key: the file of the key.
        password: of the key, if it has one.

    Returns:
        The file of the signature.

    Raises:
        ExportError: the package is missing, the key cannot be read, or needs another password.
        FileError: a file cannot be read or written.
    """
    with _as_export_error(f"the secret key {secret_key}"), _secret(secret_key) as key:
        if key.is_encrypted():
            if password is None:
                raise ExportError(f"the secret key {secret_key} is encrypted: pass its password")
            key.decrypt(password)
        with opened(_signed(path)) as file:
            made = key.sign(file, trusted_comment=f"fisopt artefact {_name(path)}")
    return write(signature_of(path), bytes(made).decode() + "\n")


def is_encrypted(secret_key: Path | str) -> bool:
    """Whether a secret key has a password; see `write_signature` for errors."""
    with _as_export_error(f"the secret key {secret_key}"), _secret(secret_key) as key:
        return bool(key.is_encrypted())


def check_signature(path: Path, public_key: Path | str) -> str:
    """Insist that an artefact was signed with a key.

    Args:
        path: the file or the folder.
        public_key: the key as text (56 characters, beginning with RW), or its file.

    Returns:
        The comment that was signed with it.

    Raises:
        ExportError: it has no signature, that of another key, or that of other contents.
        OptionError: the key is none.
    """
    minisign, beside = _package(), signature_of(path)
    key = _public(minisign, public_key)
    if not beside.is_file():
        raise ExportError(
            f"{path} is not signed: wanted its signature in {beside}; copy that too, or sign it "
            "with fisopt sign"
        )
    with _as_export_error(f"the signature {beside}"):
        signature = minisign.Signature.from_bytes(read_bytes(beside, LARGEST))
        if not signature.is_prehashed():
            raise ExportError(
                f"{beside} is a signature of the old format, which needs the whole file in "
                "memory: sign it again with fisopt sign or minisign 0.10 and newer"
            )
    with opened(_signed(path)) as file, _as_export_error(f"the signature {beside}"):
        key.verify(file, signature)
    comment: str = signature.trusted_comment
    return comment


def _signed(path: Path) -> Path:
    """The file whose bytes are signed."""
    return path / FILE if path.is_dir() else path


def _name(path: Path) -> str:
    """A name as a comment can hold it."""
    return re.sub(r"[^ -~]", "?", path.name)[:128]


def _secret(path: Path | str) -> Any:
    data = read_bytes(path_of("secret_key", path), LARGEST)
    return _package().SecretKey.from_bytes(data.strip())


def _public(minisign: Any, key: Path | str) -> Any:
    if isinstance(key, str) and _KEY.fullmatch(key):
        data = f"untrusted comment: key\n{key}".encode()
    else:
        where = path_of("public_key", key)
        data = read_bytes(where, LARGEST)
    try:
        return minisign.PublicKey.from_bytes(data.strip())
    except minisign.Error as error:
        raise OptionError(
            f"public_key={shown(str(key))} is no key of minisign: {error}; wanted the text or the "
            "file of a public key"
        ) from error


def _package() -> Any:
    try:
        import minisign
    except ImportError as error:
        raise ExportError("signatures need a package: pip install 'fisopt[sign]'") from error
    return minisign


@contextmanager
def _as_export_error(what: str) -> Iterator[None]:
    """Say what the package refuses; its errors are ValueErrors."""
    try:
        yield
    except ExportError:
        raise
    except ValueError as error:
        raise ExportError(f"{what} is wrong: {error}") from error
