"""A test that lacks something is skipped with the reason, or fails where that is required."""

import pytest
import required


@pytest.fixture
def requires(monkeypatch):
    return lambda names: monkeypatch.setenv("LSUVCB_REQUIRE", names)


def test_data_is_skipped_with_the_reason(requires, monkeypatch, tmp_path):
    requires("")
    monkeypatch.delenv("LSUVCB_DATA", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"^mnist needs LSUVCB_DATA, which is not set$"):
        required.need_data("mnist")
    monkeypatch.setenv("LSUVCB_DATA", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"^mnist needs the folder .*raw, which does not exist$"):
        required.need_data("mnist")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    required.need_data("mnist")


def test_data_that_is_required_fails(requires, monkeypatch):
    requires("fastai, mnist")
    monkeypatch.delenv("LSUVCB_DATA", raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"which is not set, but LSUVCB_REQUIRE has 'mnist'$"):
        required.need_data("mnist")
    with pytest.raises(pytest.skip.Exception):
        required.need_data("fashion_mnist")


def test_a_package_is_imported_or_skipped_or_fails(requires, monkeypatch):
    monkeypatch.setitem(required.PACKAGES, "timm", "json")
    assert required.need_package("timm").dumps(1) == "1"
    monkeypatch.setitem(required.PACKAGES, "timm", "no_such_package")
    requires("mnist")
    with pytest.raises(
        pytest.skip.Exception, match=r"^timm needs the package no_such_package, which is not installed$"
    ):
        required.need_package("timm")
    requires("mnist,timm")
    with pytest.raises(pytest.fail.Exception, match=r"LSUVCB_REQUIRE has 'timm'$"):
        required.need_package("timm")


def test_a_package_that_is_there_and_broken_is_no_reason_to_skip(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(required.PACKAGES, "timm", "broken_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        required.need_package("timm")


def test_a_name_that_no_test_asks_for_is_found(requires):
    requires("mnist,fashon_mnist,,gpu")
    assert required.unknown() == {"fashon_mnist"}
