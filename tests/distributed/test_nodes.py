from __future__ import annotations

import pytest

from raykfold.distributed.nodes import gpus_have_bf16


@pytest.mark.parametrize(
    ("kinds", "have"),
    [
        (["H200"], True),
        (["A100-40G", "L4"], True),
        (["H100", "T4"], False),
        (["V100S"], False),
        (["GeForce-RTX-2080-Ti"], False),
        (["TITAN-V"], False),
        ([], False),  # none yet, or none that Ray has a name for
    ],
)
def test_bf16_is_for_gpus_that_are_known_to_have_it(kinds: list[str], have: bool) -> None:
    resources = ["CPU", "GPU", *(f"accelerator_type:{kind}" for kind in kinds)]
    assert gpus_have_bf16(resources) is have
