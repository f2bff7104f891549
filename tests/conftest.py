"""What all tests share: where the real data lies, and a skip that says why it is not used."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.net import Project, make_project

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images and trained models; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data is not here: {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def cifar10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as JPEG files, unpacked once a session: ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``."""
    import tarfile

    root = tmp_path_factory.mktemp("cifar10")
    with tarfile.open(shared_data / "cifar10.tar.gz") as archive:
        archive.extractall(root, filter="data")
    return root / "cifar10"


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A tiny trained classifier with data."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture(autouse=True, scope="session")
def heed_ctrl_c() -> None:
    """What a script starts behind ``&`` ignores Ctrl-C, and so would all programs that tests send it to."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache or reads the user's content."""
    monkeypatch.setenv("EDGECOMPILE_CACHE", str(tmp_path / "edgecompile-cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.delenv("EDGECOMPILE_PATH", raising=False)
