import pytest


@pytest.fixture
def write(tmp_path):
    """Write a file of an experiment; returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file
