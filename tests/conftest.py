"""Fixtures that the tests share: real models, and runs on ONNX Runtime."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx_ir as ir
import pytest

from graphopt.runtime.session import open_session

Arrays = dict[str, np.ndarray[Any, Any]]

# The same cases on every run and machine; no case is too slow to count.
hypothesis.settings.register_profile("graphopt", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("graphopt")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def digits(root: Path) -> Path:
    """The folder of the digit classifiers: conv.onnx, conv_torchscript.onnx, attention.onnx, calib.npz, eval.npz."""
    return root / "examples" / "digits"


@pytest.fixture(scope="session")
def zoo() -> Path:
    """The folder of trained models that GRAPHOPT_ZOO names; skips the test where there is none."""
    return _folder("GRAPHOPT_ZOO", "trained models")


@pytest.fixture(scope="session")
def arch() -> Path:
    """The folder of random-weight architectures that GRAPHOPT_ARCH names; skips the test where there is none."""
    return _folder("GRAPHOPT_ARCH", "exported architectures")


@pytest.fixture(scope="session")
def run_all() -> Callable[[ir.Model | Path, Mapping[str, np.ndarray[Any, Any]]], dict[str, Arrays]]:
    """A function of a model and a feed: outputs by name, under the keys ``all`` and ``none`` for the runtime's own optimizations."""

    def run(model: ir.Model | Path, feed: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Arrays]:
        return {"all": open_session(model, "all").run(feed), "none": open_session(model, "none").run(feed)}

    return run


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium; skips the test where it is not installed."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium with its driver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    session.set_window_size(1400, 1000)
    yield session
    session.quit()


def _folder(variable: str, content: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder of {content}")
    path = Path(value)
    if not path.is_dir():
        pytest.fail(f"{variable} names {value}, which is no folder")
    return path
