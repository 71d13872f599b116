"""Buckets arrive as they were packed, whatever the sizes, dtypes and layouts."""

import json

import pytest
import torch

from grpo_gym.inference.weight_transfer_buckets import BucketSpec, iter_buckets

WEIGHTS = {
    "odd": torch.arange(7, dtype=torch.bfloat16),
    "matrix": torch.randn(33, 17),
    "transposed": torch.randn(5, 9).T,
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "large": torch.randn(64, 64),
    "flags": torch.tensor([True, False, True]),
    "last": torch.randn(3, dtype=torch.float16),
}


def roundtrip(bucket_bytes, **options):
    """What a receiver reads that knows the JSON of the spec and the bytes of the buffer."""
    received, sizes = {}, []
    for spec, flat in iter_buckets(WEIGHTS.items(), bucket_bytes, **options):
        spec = BucketSpec(**json.loads(json.dumps(spec.to_json())))
        assert spec.offsets()[-1] == flat.numel()
        received |= {name: tensor.clone() for name, tensor in spec.unpack(flat.clone())}
        sizes.append(flat.numel())
    return received, sizes


@pytest.mark.parametrize("bucket_bytes", [1, 100, 3000, 10**6])
def test_what_is_packed_is_what_is_unpacked(bucket_bytes):
    received, _ = roundtrip(bucket_bytes)
    assert list(received) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert received[name].dtype == tensor.dtype
        assert received[name].shape == tensor.shape
        assert torch.equal(received[name], tensor)


def test_buckets_keep_to_their_size_unless_one_parameter_is_larger():
    _, sizes = roundtrip(3000)
    large = WEIGHTS["large"].numel() * 4
    assert [size for size in sizes if size > 3008] == [large]
    assert len(roundtrip(10**6)[1]) == 1


def test_all_buckets_share_one_buffer():
    starts = {
        flat.data_ptr() for _, flat in iter_buckets([(str(i), torch.ones(100)) for i in range(9)], 1000)
    }
    assert len(starts) == 1


def test_floating_point_weights_are_converted_and_others_are_not():
    received, _ = roundtrip(3000, dtype=torch.bfloat16)
    assert received["flags"].dtype == torch.bool
    assert all(received[name].dtype == torch.bfloat16 for name in WEIGHTS if name != "flags")
    assert torch.equal(received["matrix"], WEIGHTS["matrix"].bfloat16())


def test_a_name_given_twice_and_no_weights_are_refused():
    with pytest.raises(ValueError, match="'a' was given twice"):
        list(iter_buckets([("a", torch.ones(1)), ("a", torch.ones(1))]))
    with pytest.raises(ValueError, match="No weights"):
        list(iter_buckets([]))


def test_a_malformed_announcement_is_refused():
    with pytest.raises(ValueError, match="as many dtypes and shapes as names"):
        BucketSpec(["a"], ["float32"], [])
    with pytest.raises(ValueError, match="Unknown weight dtype 'nn'"):
        BucketSpec(["a"], ["nn"], [[1]]).offsets()
