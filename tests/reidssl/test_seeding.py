"""Seeds: stable, sensitive to every part, and uniform."""

import numpy as np
import pytest

from reidssl.seeding import mix, sample_seeds, uniforms


def test_splitmix_gives_the_published_sequence():
    """The generator's first outputs for the state 1234567, as in common lists of test vectors."""
    from reidssl.seeding import GOLDEN_RATIO, _scramble

    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN_RATIO
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert _scramble(states).tolist() == expected


def test_values_are_frozen():
    """A changed value would change every resumed run, so these values must never change."""
    assert mix(0) == 4246866556266386882
    assert sample_seeds(7, 3, ["a/b.jpg"]).tolist() == [16114865995103081484]
    np.testing.assert_array_equal(uniforms(np.array([5], np.uint64), 2, stream=1), [[0.1054448114063975, 0.9221926923303404]])


def test_seeds_depend_on_every_part_and_on_nothing_else():
    keys = [f"{i}.jpg" for i in range(200)]
    base = sample_seeds(1, 2, keys)
    assert base.dtype == np.uint64
    assert len(set(base.tolist())) == 200
    assert not (base == sample_seeds(2, 2, keys)).any()
    assert not (base == sample_seeds(1, 3, keys)).any()
    assert not (sample_seeds(1, 23, keys) == sample_seeds(12, 3, keys)).any()
    np.testing.assert_array_equal(base[::-1], sample_seeds(1, 2, keys[::-1]))
    assert sample_seeds(1, 2, ["\udcff.jpg", "\u00fc.jpg"]).shape == (2,)  # a file name that is not UTF-8
    assert sample_seeds(1, 2, []).shape == (0,)


def test_mix_is_stable_positive_and_sensitive():
    values = {mix(*numbers) for numbers in [(1,), (1, 2), (2, 1), (12,), (1, 2, 0), (-1, 2), (2**80,)]}
    assert len(values) == 7
    assert all(0 <= value < 2**63 for value in values)
    assert mix(np.int64(3), 4) == mix(3, 4)
    with pytest.raises(ValueError, match="at least one integer"):
        mix()


def test_uniforms_depend_on_their_own_seed_stream_and_place():
    seeds = sample_seeds(0, 0, [str(i) for i in range(50)])
    whole = uniforms(seeds, 12, stream=3)
    np.testing.assert_array_equal(whole[20:31], uniforms(seeds[20:31], 12, stream=3))
    np.testing.assert_array_equal(whole[:, :5], uniforms(seeds, 5, stream=3))
    assert not (whole == uniforms(seeds, 12, stream=4)).any()


@pytest.mark.parametrize("seeds", [np.arange(20000, dtype=np.uint64), sample_seeds(0, 0, list(map(str, range(20000))))])
def test_uniforms_are_uniform_and_uncorrelated(seeds):
    """This holds also for consecutive seeds."""
    values = uniforms(seeds, 4)
    assert values.dtype == np.float64
    assert values.min() >= 0.0 and values.max() < 1.0
    np.testing.assert_allclose(values.mean(0), 0.5, atol=0.01)
    np.testing.assert_allclose(values.var(0), 1 / 12, atol=0.003)
    counts = np.histogram(values[:, 0], bins=50, range=(0, 1))[0]
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert 20 < chi_square < 95  # 49 degrees of freedom: 1e-4 quantiles on both sides
    together = np.concatenate([values, uniforms(seeds, 4, stream=1)], axis=1)
    correlation = np.corrcoef(together.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.035


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"uint64 array.*got int64 \(3,\)"):
        uniforms(np.arange(3), 1)
    with pytest.raises(ValueError, match="one-dimensional"):
        uniforms(np.zeros((2, 2), np.uint64), 1)
    with pytest.raises(ValueError, match="must not be negative"):
        uniforms(np.zeros(2, np.uint64), -1)
    with pytest.raises(ValueError, match="single string 'abc'"):
        sample_seeds(0, 0, "abc")
