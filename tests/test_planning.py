"""Free memory, and the largest batch that fits."""

import torch

from stvid.cost.planning import _cgroup_free_bytes, free_bytes, largest_batch


def test_no_larger_batch_fits_even_if_the_peak_has_a_kink():
    def peak(batch: int) -> int:
        return 1_000 + 10 * batch + max(0, 30 * (batch - 20))

    for budget in (1_020, 1_035, 1_190, 1_500, 3_000):
        size = largest_batch(peak, budget=budget, limit=200)
        assert peak(size) <= budget
        assert size == 200 or peak(size + 1) > budget
    assert largest_batch(peak, budget=1_019) == 0
    assert largest_batch(lambda size: size, budget=1e9) == 256


def test_free_memory_respects_the_limit_of_a_container(tmp_path):
    membership = tmp_path / "cgroup"
    membership.write_text("0::/job/step\n")
    folder = tmp_path / "job"
    (folder / "step").mkdir(parents=True)
    (folder / "step" / "memory.max").write_text("max\n")
    (folder / "step" / "memory.current").write_text("5\n")
    (folder / "memory.max").write_text("1000\n")
    (folder / "memory.current").write_text("600\n")
    (folder / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert _cgroup_free_bytes(tmp_path, membership) == 1000 - 600 + 100
    assert _cgroup_free_bytes(tmp_path, tmp_path / "nothing") is None
    assert free_bytes(torch.device("meta")) is None
