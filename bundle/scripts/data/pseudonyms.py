"""Names of patients and volumes that say nothing about who they are."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from .sources import Source


class Pseudonym:
    """Names made with a secret, so that nobody without it finds a patient by trying all patient ids."""

    def __init__(self, salt: str) -> None:
        self.salt = salt.encode()

    def hash(self, text: str, digits: int) -> str:
        return hmac.new(self.salt, text.encode(), "sha256").hexdigest()[:digits]

    def patient(self, source: Source) -> str:
        return self.hash(f"patient {source.patient}", 12)

    def of(self, source: Source) -> str:
        """The name of a source's volume."""
        return f"{self.patient(source)}_{self.hash(f'source {source.key}', 8)}"


def read_salt(path: Path) -> str:
    """The secret in a file; a new one is made where it is missing, for the user's eyes alone.

    Raises:
        ValueError: in one line, when the file cannot be read, written, or is empty.
    """
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32) + "\n")
        salt = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"salt_file {path} cannot be used: {error.strerror}") from None
    if not salt:
        raise ValueError(f"salt_file {path} is empty")
    return salt
