"""Site configuration: strict, with the nearest key where one is misspelt."""

import dataclasses

import pytest

from jobagent import config as configuration
from jobagent.config import Config, JobSettings, SiteSettings
from jobagent.errors import ConfigurationError
from jobagent.pluginmanager import load


def write(path, text):
    path.write_text(text)
    return configuration.load(path)


def test_values_reach_their_dataclass(tmp_path):
    config = write(tmp_path / "c.toml", '[site]\nname = "CERN"\nscratch = "/data"\n[job]\nkill_grace_s = 3\n')
    assert config.get(SiteSettings).name == "CERN"
    assert str(config.get(SiteSettings).scratch) == "/data"
    assert config.get(JobSettings).kill_grace_s == 3.0


def test_an_unknown_key_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigurationError, match=r"\[site\]: unknown key scrach; did you mean scratch\?"):
        write(tmp_path / "c.toml", '[site]\nscrach = "/data"\n')


def test_an_unknown_section_suggests_the_nearest(tmp_path):
    config = write(tmp_path / "c.toml", "[swram]\n")
    with pytest.raises(ConfigurationError, match=r"unknown section \[swram\]; did you mean \[swarm\]\?"):
        load(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[site]\nname = 3\n", "name is 3, expected str"),
        ("[job]\nwall_limit_s = true\n", "wall_limit_s is True, expected int"),
        ("[site\n", "c.toml"),
        ("site = 1\n", "site must be a table"),
    ],
)
def test_a_wrong_value_says_what_was_expected(tmp_path, text, message):
    with pytest.raises(ConfigurationError, match=message):
        write(tmp_path / "c.toml", text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"cannot read configuration .*absent\.toml"):
        configuration.load(tmp_path / "absent.toml")


def test_every_setting_of_every_plugin_is_documented():
    config = Config()
    load(config)
    for section, cls in config.sections.items():
        assert cls.__doc__, section
        for field in dataclasses.fields(cls):
            assert field.metadata.get("doc"), f"[{section}] {field.name}"


def test_no_setting_switches_verification_off():
    config = Config()
    load(config)
    names = [f.name for cls in config.sections.values() for f in dataclasses.fields(cls)]
    assert not [n for n in names if any(word in n for word in ("verify", "insecure", "signature", "trust"))]
