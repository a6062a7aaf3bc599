"""What is wrong with an address is said before anything is written or started."""

import socket
import sys

import pytest

import mmdistill
from mmdistill.cluster import joining
from mmdistill.cluster.joining import checked_address, joined_cluster
from mmdistill.errors import InputError, StudyError


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def problem_of(address):
    with pytest.raises(InputError) as caught:
        checked_address(address)
    (problem,) = caught.value.problems
    return str(problem)


def test_local_needs_nothing():
    assert checked_address("local") == "local"


@pytest.mark.parametrize("address", ["host", "host:port", "ray://host:1", "host:123456", "", "a b:1"])
def test_an_address_is_host_and_port(address):
    assert "an address is HOST:PORT, `auto` or `local`" in problem_of(address)


def test_a_cluster_is_joined_with_a_token_only(monkeypatch, tmp_path):
    text = problem_of("head:6379")
    assert "this environment has none; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file" in text
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert "has none" in problem_of("head:6379")
    (tmp_path / "token").write_text("secret")
    assert checked_address("head:6379") == "head:6379"
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert checked_address("[::1]:6379") == "[::1]:6379"


def test_auto_is_the_cluster_of_the_job(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "`auto` is for jobs inside a cluster" in problem_of("auto")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert checked_address("auto") == "10.0.0.1:6379"


def joined(address, tmp_path):
    with joined_cluster(address, tmp_path, tmp_path / "cache"):
        pytest.fail("joined")


def test_where_nobody_listens_nothing_answers(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(StudyError, match=rf"nothing answers at {address}: .*refused; is the cluster running"):
        joined(address, tmp_path)
    with pytest.raises(StudyError, match=r"nothing answers at nowhere\.invalid:6379"):
        joined("nowhere.invalid:6379", tmp_path)


def test_what_listens_but_is_no_ray_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(StudyError, match=rf"no Ray answers at {address} within 3 s"):
            joined(address, tmp_path)


def test_a_node_tells_what_keeps_it_from_taking_orders(tmp_path):
    look, (probe, here) = joining._looker(), (tmp_path / "nonce.tmp", str(tmp_path))
    place = f"does not see {tmp_path}; use a disk that all nodes share"
    assert look([str(probe)], "abc", here, mmdistill.__version__).startswith(place)
    probe.write_text("of another run")
    assert look([str(probe)], "abc", here, mmdistill.__version__).startswith(place)
    probe.write_text("abc")
    assert look([str(probe)], "abc", here, mmdistill.__version__) is None
    assert look([str(probe)], "abc", here, "0.0") == f"has mmdistill {mmdistill.__version__}, not 0.0"
    gone = str(tmp_path / "gone")
    assert look([str(probe)], "abc", gone, mmdistill.__version__).startswith(f"has no folder {gone}; start")


def test_a_node_without_this_package_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdistill", None)
    answer = joining._looker()([], "abc", str(tmp_path), "1")
    assert answer.startswith("cannot import mmdistill (")
    assert answer.endswith("install the same environment on every node")
