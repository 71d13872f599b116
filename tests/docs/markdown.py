"""Reading the commands and links of the documents."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "environments").glob("*/README.md")]
)


def name_of(document):
    return str(document.relative_to(ROOT))


def shell_lines(document):
    """The lines of the document's bash blocks, continued ones joined."""
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def commands(document, program):
    """The words of every command of `program` in the document, without the program's name."""
    found = [shlex.split(line, comments=True) for line in shell_lines(document)]
    return [words[1:] for words in found if words and words[0] == program]


def links(document):
    """Targets of the document's links to files."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    return [target for target in targets if "://" not in target]
