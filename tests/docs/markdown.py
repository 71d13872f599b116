"""Reading the commands and links of the documents."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "environments").glob("*/README.md")]
)


def name_of(document):
    return str(document.relative_to(ROOT))


def blocks(document, language):
    """The document's blocks of a language, without those below `<!-- fragment -->`."""
    pattern = rf"(<!-- fragment -->\n+)?```{language}\n(.*?)```"
    return [block for mark, block in re.findall(pattern, document.read_text(), re.DOTALL) if not mark]


def shell_lines(document):
    """The lines of the document's bash blocks, continued ones joined."""
    text = "\n".join(blocks(document, "bash")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]


def commands(document, program):
    """The words of every command of `program` in the document, without the program's name."""
    found = [shlex.split(line, comments=True) for line in shell_lines(document)]
    return [words[1:] for words in found if words and words[0] == program]


def links(document):
    """Targets of the document's links to files."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text())
    return [target for target in targets if "://" not in target]


def run_line(line, folder):
    """Run a line in a shell as a user with the virtual environment active does; it has to succeed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
