"""`prdit`: one short command for each job, on top of MONAI's; `--show` prints the MONAI command that it stands for."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """The console script, and what runs this file."""
    if not (ROOT / "configs").is_dir():
        sys.exit(f"error: {ROOT} holds no bundle; install prdit in place: pip install -e REPOSITORY")
    if str(ROOT) not in sys.path:
        sys.path.insert(1, str(ROOT))  # where MONAI puts it, too
    from scripts.commands import run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
