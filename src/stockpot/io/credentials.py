"""Credentials that obstore does not find by itself, and what to do where there are none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from stockpot._optional import require
from stockpot.errors import CheckpointError, OptionalDependencyError

_AWS_FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
}
"""Where profiles are, unless these variables say so."""

_UNSIGNED = re.compile("token request|/api/token|Account must be specified")
"""Of obstore's messages: it found no credentials, and the machine has no role."""

_REMEDIES = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure; for a public "
    "bucket set AWS_SKIP_SIGNATURE=true",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS; for a public bucket GOOGLE_SKIP_SIGNATURE=true",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY; for a public container "
    "AZURE_SKIP_SIGNATURE=true in place of the key",
}


def aws_profile() -> dict[str, Any]:
    """The credentials of a profile, as an option of obstore's `S3Store`; boto3 reads it.

    Empty where the environment holds keys or wants none, and where there are no profiles: what is
    left, such as the role of the machine, obstore finds itself.

    Raises:
        CheckpointError: the profile that `AWS_PROFILE` names is not there or holds no credentials.
        OptionalDependencyError: `AWS_PROFILE` is set and boto3 is not installed.
    """
    asked = os.environ.get("AWS_PROFILE")
    unsigned = os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true", "yes", "on")
    files = [Path(os.environ.get(name, place)) for name, place in _AWS_FILES.items()]
    there = asked or any(file.expanduser().is_file() for file in files)
    if os.environ.get("AWS_ACCESS_KEY_ID") or unsigned or not there:
        return {}
    try:
        require("boto3")
    except OptionalDependencyError:
        if asked:
            raise
        return {}
    provider = require("obstore.auth.boto3").Boto3CredentialProvider
    try:
        return {"credential_provider": provider()}
    except (require("botocore.exceptions").BotoCoreError, ValueError) as error:
        if asked:
            raise CheckpointError(f"the AWS profile {asked} cannot be used: {error}") from None
        return {}  # the files name a region, and no credentials


def how_to_sign(name: str, error: BaseException) -> str | None:
    """What to do about an error of obstore, where it found no credentials; None for others.

    >>> how_to_sign("gs://bucket/", ValueError("Error performing token request: ..."))[:42]
    'Set GOOGLE_APPLICATION_CREDENTIALS; for a '
    """
    return _REMEDIES.get(name.partition("://")[0]) if _UNSIGNED.search(str(error)) else None
