import os
from importlib.metadata import PackageNotFoundError

import pytest

from mmdistill.cli import doctor
from mmdistill.transport import reference


def by_name(answer):
    return {check["name"]: check for check in answer.json}


def test_everything_is_fine_here(call):
    before = dict(os.environ)
    answer = call("doctor", "--json")
    assert answer.code == 0
    found = by_name(answer)
    assert {"python", "mmdistill", *doctor.PACKAGES} <= set(found)
    assert found["Ray authentication"]["found"].startswith("RAY_AUTH_MODE=token")
    assert "known to its processes only" in found["Ray token"]["found"]
    assert {"CPUs", "memory", "GPUs", "threads", "temporary folder", "transport solver"} <= set(found)
    assert dict(os.environ) == before


def test_text_has_a_line_per_check(call):
    lines = call("doctor").out.splitlines()
    assert len(lines) == len(doctor.examine())
    assert all(line.split()[0] in {"ok", "warning"} for line in lines)


def test_a_missing_package_fails_with_advice(call, monkeypatch):
    def version(package):
        if package == "ray":
            raise PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    answer = call("doctor")
    assert answer.code == 1
    assert "failed   ray" in answer.out
    assert "not installed; install with `make install`" in answer.out


def test_a_solver_that_disagrees_fails(call, monkeypatch):
    monkeypatch.setattr(reference, "deviation_from_pot", lambda: 1e-3)
    answer = call("doctor", "--json")
    assert answer.code == 1
    assert by_name(answer)["transport solver"]["state"] == "failed"


def test_a_check_that_breaks_is_a_failed_check(call, monkeypatch):
    def broken():
        raise ImportError("libgomp.so.1 is missing")

    monkeypatch.setattr(reference, "deviation_from_pot", broken)
    check = by_name(call("doctor", "--json"))["transport solver"]
    assert (check["state"], check["found"]) == ("failed", "ImportError: libgomp.so.1 is missing")


def test_another_authentication_mode_of_the_shell_is_named(call, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = by_name(call("doctor", "--json"))["Ray authentication"]["found"]
    assert "RAY_AUTH_MODE=disabled of this shell is overruled" in found


def test_a_long_temporary_folder_is_a_warning(call, monkeypatch):
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: "/" + "x" * 60)
    assert by_name(call("doctor", "--json"))["temporary folder"]["state"] == "warning"


def test_the_solver_agrees_with_pot():
    assert reference.deviation_from_pot() == pytest.approx(0, abs=1e-8)
