"""Runs to report on."""

import pytest

from tests.reporting.synthetic_run import make_run


@pytest.fixture
def run_dir(tmp_path):
    return make_run(tmp_path / "run")
