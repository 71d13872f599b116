"""A shuffled order without a table: the position of a million prompts costs as much as that of ten.

A keyed Feistel network permutes the numbers of 2b bits, for any round function (Luby and Rackoff, 1988). Numbers
that fall outside of the range are permuted again until they fall inside ("cycle walking", Black and Rogaway, 2002),
which keeps it a permutation of exactly that range.
"""

from __future__ import annotations

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_WORD = 2**64 - 1
_ROUNDS = 6


def permuted(position: int, size: int, seed: int) -> int:
    """Where `position` is mapped to by the permutation of `range(size)` that belongs to `seed`.

    The same in every process and Python version; takes constant time and no memory.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)  # the domain is less than four times the range
    key = _scramble(seed & _WORD)
    while True:
        position = _feistel(position, half_bits, key)
        if position < size:
            return position


def _feistel(number: int, half_bits: int, key: int) -> int:
    mask = (1 << half_bits) - 1
    left, right = number >> half_bits, number & mask
    for round_number in range(_ROUNDS):
        left, right = right, left ^ (_scramble(key + _ROUNDS * right + round_number) & mask)
    return left << half_bits | right


def _scramble(number: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014): a well-mixed bijection of 64-bit words."""
    number = (number + 0x9E3779B97F4A7C15) & _WORD
    number = ((number ^ number >> 30) * _MULTIPLIERS[0]) & _WORD
    number = ((number ^ number >> 27) * _MULTIPLIERS[1]) & _WORD
    return number ^ number >> 31
