"""What launchers compute with."""

import triton

from kernels.language import block_of, cdiv, next_power_of_2


def test_rounding_up_is_as_triton_has_it():
    for size in range(1, 70):
        assert next_power_of_2(size) == triton.next_power_of_2(size)
        assert all(cdiv(size, block) == triton.cdiv(size, block) for block in (1, 3, 16))


def test_nothing_takes_a_block_but_no_blocks():
    assert (cdiv(0, 16), next_power_of_2(0), block_of(0)) == (0, 1, 16)
