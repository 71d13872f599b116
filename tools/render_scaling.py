"""Fill the tables of docs/scaling.md from benchmarks/results/*.json; a table without results is an error.

python tools/render_scaling.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Rewrite the document."""
    DOCUMENT.write_text(render(DOCUMENT.read_text(), RESULTS))


def render(text: str, results: Path) -> str:
    """The document with the table of every result.

    Raises:
        FileNotFoundError: a result that the document shows was not measured.
    """

    def fill(match: re.Match[str]) -> str:
        return match[1] + table(results, match[2]) + match[3]

    return _TABLE.sub(fill, text)


def table(results: Path, name: str) -> str:
    """The table of NAME.md, with the line that says where it was measured."""
    lines = [line for line in (results / f"{name}.md").read_text().splitlines() if line.startswith("|")]
    record = json.loads((results / f"{name}.json").read_text())
    machine = record["machine"]
    machine_name = f"{machine['cpu']}, {machine['cores']} cores"
    where = f"Measured by `{record['command']}` at {record['git_commit']} on {machine_name}."
    notes = [f"- {note}" for note in record["notes"]]
    return "\n".join(["", *lines, "", where, "", *notes, ""]) + "\n"


if __name__ == "__main__":
    main()
