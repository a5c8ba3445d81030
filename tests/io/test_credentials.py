"""Profiles of AWS, and what is said where nothing signs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stockpot.errors import CheckpointError, OptionalDependencyError
from stockpot.io import objects
from stockpot.io.credentials import aws_profile, how_to_sign

KEYS = "aws_access_key_id = AKIA{0}\naws_secret_access_key = secret-{0}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder without profiles, on a machine without a role."""
    pytest.importorskip("boto3")
    pytest.importorskip("obstore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_DEFAULT_PROFILE",
                 "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION", "AWS_DEFAULT_REGION"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    objects._handle.cache_clear()  # it answers for a bucket of the same name that was open before
    return tmp_path


def written(home: Path, name: str, text: str) -> None:
    (home / ".aws" / name).write_text(text)


def test_the_default_profile_is_read_without_being_asked_for(home: Path) -> None:
    """As `aws configure` writes it, region and all."""
    written(home, "credentials", f"[default]\n{KEYS.format(1)}")
    written(home, "config", "[default]\nregion = eu-west-1\n")
    provider = aws_profile()["credential_provider"]
    assert provider()["access_key_id"] == "AKIA1"
    assert provider()["secret_access_key"] == "secret-1"
    assert provider.config == {"region": "eu-west-1"}


def test_a_profile_can_be_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(home, "credentials", f"[default]\n{KEYS.format(1)}[work]\n{KEYS.format(2)}")
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert aws_profile()["credential_provider"]()["access_key_id"] == "AKIA2"


def test_a_file_elsewhere_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mine").write_text(f"[default]\n{KEYS.format(3)}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "mine"))
    assert aws_profile()["credential_provider"]()["access_key_id"] == "AKIA3"


def test_without_profiles_obstore_searches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert aws_profile() == {}
    written(home, "config", "[default]\nregion = eu-west-1\n")
    assert aws_profile() == {}  # a region signs nothing
    written(home, "credentials", f"[default]\n{KEYS.format(1)}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from the environment")
    assert aws_profile() == {}


def test_a_public_bucket_wants_no_profile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(home, "credentials", f"[default]\n{KEYS.format(1)}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert aws_profile() == {}


def test_without_boto3_only_a_named_profile_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with a role may have a file that names its region."""
    written(home, "config", "[default]\nregion = eu-west-1\n")
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert aws_profile() == {}
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(OptionalDependencyError, match=r"stockpot\[remote\]"):
        aws_profile()


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_profile_that_cannot_be_used_is_named(
    home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(home, "config", "[profile empty]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_PROFILE", name)
    with pytest.raises(CheckpointError, match=f"the AWS profile {name} cannot be used"):
        objects.open_store("s3://bucket/model")


@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        ("s3://b/", "Error performing PUT http://169.254.169.254/latest/api/token in", "configure"),
        ("gs://b/", "Error performing token request: Error performing GET http", "GOOGLE_APPLIC"),
        ("az://b", "Generic MicrosoftAzure error: Account must be specified", "AZURE_STORAGE_ACC"),
    ],
)
def test_missing_credentials_have_a_remedy(name: str, said: str, remedy: str) -> None:
    found = how_to_sign(name, ValueError(said))
    assert found is not None
    assert remedy in found
    assert "SKIP_SIGNATURE=true" in found
    assert how_to_sign(name, ValueError("HTTP error: error sending request")) is None


def test_the_remedy_stands_in_the_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT",
        "AZURE_STORAGE_USE_EMULATOR",
    ):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CheckpointError, match=r"Account must.*Set AZURE_STORAGE_ACCOUNT_NAME and"):
        objects.open_store("az://container/model")
