from __future__ import annotations

import socket

import pytest

from raykfold.errors import BadInput
from raykfold.session import ray_session


def test_an_address_where_nobody_listens_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(BadInput, match=f"--address {address}: no Ray"), ray_session(address):
            raise AssertionError("connected to nobody")
