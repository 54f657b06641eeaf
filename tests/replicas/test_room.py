"""Whether one more version of a language model fits beside the others."""

from __future__ import annotations

from pelton.replicas.room import lacking, size

GB = 10**9


def test_a_version_of_the_same_size_needs_as_much_as_the_one_that_serves():
    assert lacking(4 * GB, 1, 2 * GB, 2 * GB, 5.0 * GB) == ""
    assert lacking(4 * GB, 1, 2 * GB, 2 * GB, 4.1 * GB) == "it would need about 4.00 GB of memory, 3.89 GB can be had"


def test_more_weights_need_as_much_more_in_each_process():
    assert "about 6.00 GB" in lacking(4 * GB, 1, 2 * GB, 4 * GB, 5.0 * GB)
    assert "about 8.00 GB" in lacking(4 * GB, 2, 2 * GB, 4 * GB, 5.0 * GB)
    assert lacking(4 * GB, 2, 2 * GB, 4 * GB, 8.5 * GB) == ""


def test_a_small_models_libraries_are_not_multiplied_with_the_weights():
    """0.1 GB of weights in a process of 0.6 GB says of 2 GB of weights: 2.5 GB, not 12."""
    assert lacking(6 * GB // 10, 1, GB // 10, 2 * GB, 3.0 * GB) == ""
    assert "about 2.50 GB" in lacking(6 * GB // 10, 1, GB // 10, 2 * GB, 2.0 * GB)


def test_fewer_weights_leave_the_rest_of_a_process_as_it_is():
    assert "about 3.00 GB" in lacking(4 * GB, 1, 2 * GB, 1 * GB, 2.5 * GB)
    assert lacking(4 * GB, 1, 2 * GB, 1 * GB, 3.2 * GB) == ""


def test_weights_that_a_gpu_holds_are_not_expected_in_memory():
    assert lacking(2 * GB, 1, 20 * GB, 20 * GB, 2.2 * GB) == ""
    assert "about 4.00 GB" in lacking(2 * GB, 1, 20 * GB, 40 * GB, 3.0 * GB)


def test_nothing_is_refused_where_nothing_is_known():
    assert lacking(0, 0, 0, 10 * GB, 1.0) == ""
    assert lacking(4 * GB, 1, 1, 10 * GB, float("inf")) == ""


def test_all_files_of_a_package_count(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "model.xml").write_bytes(b"x" * 10)
    (tmp_path / "deep" / "model.bin").write_bytes(b"x" * 1000)
    assert size(tmp_path) == 1010
    assert size(tmp_path / "none") == 0
