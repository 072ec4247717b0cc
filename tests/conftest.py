"""`pytest --parity FILE` also writes the table of parities that the book shows (`make results`)."""

import os
from pathlib import Path

# Tests run side by side, a process a core (`make test`): threads inside would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import pytest


def pytest_addoption(parser):
    parser.addoption("--parity", type=Path, help="write the table of parities to this CSV file")


@pytest.fixture(scope="session")
def parities(pytestconfig):
    """Rows of the table, added by the tests that measure them."""
    rows = []
    yield rows
    if path := pytestconfig.getoption("--parity"):
        pd.DataFrame(rows).to_csv(path, index=False, float_format="%.1e")
