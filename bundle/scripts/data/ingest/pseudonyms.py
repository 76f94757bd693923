"""Names of patients and volumes that say nothing about who they are, and the table that does."""

from __future__ import annotations

import csv
import hmac
import io
import secrets
from pathlib import Path
from typing import Any, Mapping, Sequence

from ...files import whole_file, write_text
from ..prepared import as_bytes
from .sources import Source

MAPPING_COLUMNS = ["volume", "patient", "status", "reason", "patient_id", "path"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what spreadsheets run


class Pseudonym:
    """Names made with a secret, so that nobody without it finds a patient by trying all patient ids."""

    def __init__(self, salt: str) -> None:
        self.salt = salt.encode()

    def hash(self, text: str, digits: int) -> str:
        return hmac.new(self.salt, as_bytes(text), "sha256").hexdigest()[:digits]

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
            write_text(path, secrets.token_hex(32) + "\n", private=True)
        salt = path.read_text().strip()
    except OSError as error:
        raise ValueError(f"salt_file {path} cannot be used: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"salt_file {path} is no text; choose another one") from None
    if not salt:
        raise ValueError(f"salt_file {path} is empty")
    return salt


def write_mapping(path: Path, records: Sequence[dict[str, Any]], sources: Mapping[str, Source]) -> None:
    """Writes a CSV of which volume is which patient and path, for the user's eyes alone.

    Cells that a spreadsheet would take for a formula get a quote in front.

    Args:
        path: of the table.
        records: see `VolumeJob`.
        sources: by the names of their volumes.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(MAPPING_COLUMNS)
    for record in records:
        source = sources[record["volume"]]
        cells = [*(record[name] for name in ("volume", "patient", "status", "reason")), source.patient, source.path]
        writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])

    with whole_file(path, private=True) as file:
        file.write(as_bytes(table.getvalue()))
