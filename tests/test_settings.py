"""Where settings come from, and what is said of wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pelton import settings
from pelton.errors import SettingInvalid


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    (tmp_path / settings.FILE_NAME).write_text("port = 1\nworkers = 2\nslots = 3\n")
    found = settings.load({"home": str(tmp_path), "port": 9}, {"PELTON_PORT": "5", "PELTON_WORKERS": "6"})
    assert (found.port, found.workers, found.slots) == (9, 6, 3)


@pytest.mark.parametrize(
    ("file", "environment", "told"),
    [
        ("prot = 1", {}, "settings.toml has the unknown setting prot; did you mean port?"),
        ("", {"PELTON_PROT": "1"}, "the environment has the unknown setting PELTON_PROT; did you mean PELTON_PORT?"),
        ("port = 70000", {}, "port"),
        ("port = ", {}, "settings.toml"),
        ("", {"PELTON_TENANT_WEIGHTS": "key-1"}, "tenant_weights has 'key-1'; write TENANT=WEIGHT"),
        ("", {"PELTON_TENANT_WEIGHTS": "=2"}, "tenant_weights has '=2'"),
        ("", {"PELTON_TENANT_WEIGHTS": "a=2,b=0"}, "tenant_weights has 'b=0'"),
        ("", {"PELTON_TENANT_WEIGHTS": "a=nan"}, "tenant_weights has 'a=nan'"),
        ("", {"PELTON_TENANT_WEIGHTS": "a=inf"}, "tenant_weights has 'a=inf'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_source(
    tmp_path: Path, file: str, environment: dict[str, str], told: str
) -> None:
    (tmp_path / settings.FILE_NAME).write_text(file)
    with pytest.raises(SettingInvalid) as raised:
        settings.load({"home": str(tmp_path)}, environment)
    assert told in str(raised.value)


def test_tenants_have_the_weights_that_they_are_given(tmp_path: Path) -> None:
    found = settings.load({"home": str(tmp_path)}, {"PELTON_TENANT_WEIGHTS": "key-a=3, key-b = 0.5,"})
    assert found.weights() == {"key-a": 3.0, "key-b": 0.5}
    assert settings.load({"home": str(tmp_path)}, {}).weights() == {}
