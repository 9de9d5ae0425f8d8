"""Secrets in the environment, and out of it."""

from __future__ import annotations

import pytest

from raykfold.config.credentials import taken_out_of
from raykfold.errors import BadInput


def test_secrets_are_gone_inside_and_back_afterwards() -> None:
    environ = {"HF_TOKEN": " hf_a\n", "WANDB_API_KEY": "b", "HOME": "/home/me"}
    before = dict(environ)
    with taken_out_of(environ) as credentials:
        assert environ == {"HOME": "/home/me"}
        assert (credentials.hf_token, credentials.wandb_api_key) == ("hf_a", "b")
        assert "hf_a" not in repr(credentials)
    assert environ == before


def test_what_the_environment_lacks_is_none() -> None:
    with taken_out_of({"HF_TOKEN": " "}) as credentials:
        assert (credentials.hf_token, credentials.wandb_api_key) == (None, None)


@pytest.mark.parametrize("secret", ["hf_a\nhf_b", "hf_a hf_b", "hf_a\x00", "hf_\u00e4"])
def test_a_malformed_secret_is_refused_without_being_shown(secret: str) -> None:
    environ = {"HF_TOKEN": secret}
    with pytest.raises(BadInput, match="HF_TOKEN") as refused, taken_out_of(environ):
        raise AssertionError("taken for a token")
    assert "hf_" not in str(refused.value)
    assert environ == {"HF_TOKEN": secret}
