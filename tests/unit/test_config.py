"""Settings that are more than a value: what is forced on jobs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remuda.config import load_settings
from remuda.errors import ConfigError


def test_what_is_said_of_a_pool_goes_before_what_is_said_of_all(tmp_path: Path) -> None:
    settings = load_settings(
        data_dir=tmp_path, forced_constants={"*": {"A": "1", "B": "1"}, "sim": {"B": "2"}}
    )
    assert settings.forced_for("sim") == {"A": "1", "B": "2"}
    assert settings.forced_for("other") == {"A": "1", "B": "1"}
    assert load_settings(data_dir=tmp_path).forced_for("sim") == {}


@pytest.mark.parametrize(
    "wrong",
    [{"*": {"A B": "1"}}, {"*": {"": "1"}}, {"*": {"A": 1}}, {"*": {"A": "\0"}}, {"*": "A=1"},
     {"*": {"REMUDA_JOB_ID": "1"}}, {"*": {"A": "x" * 65537}}],
)  # fmt: skip
def test_wrong_forced_constants_are_refused_by_name(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="forced_constants"):
        load_settings(data_dir=tmp_path, forced_constants=wrong)
