"""Access to the real datasets that are too large for the repository."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from optlab.data.base import data_folder
from optlab.data.prepare import RemoteFile


@pytest.fixture
def real_data() -> Callable[[tuple[RemoteFile, ...]], Path]:
    """The data folder if it holds the files; else skip, or fail where OPTLAB_REQUIRE_DATA=1."""

    def folder_with(files: tuple[RemoteFile, ...]) -> Path:
        folder = data_folder()
        missing = [file.path for file in files if not (folder / file.path).is_file()]
        if missing:
            reason = f"no {', '.join(missing)} in {folder}: set OPTLAB_DATA"
            give_up = pytest.fail if os.environ.get("OPTLAB_REQUIRE_DATA") == "1" else pytest.skip
            give_up(reason)
        return folder

    return folder_with
