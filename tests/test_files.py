"""Downloads: complete and verified, or not there at all."""

import errno
import gzip
import hashlib
import os
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from jepa.data import files
from jepa.data.files import check_sha256, fetch
from jepa.data.higgs import COLUMNS, Higgs
from jepa.data.jannis import Jannis

BODY = bytes(range(256)) * 500
SUM = hashlib.sha256(BODY).hexdigest()


ELSEWHERE = {
    "/elsewhere": "ftp://example.org/file",
    "/plain": "http://example.org/file",
    "/onwards": "/good",
    "/twice": "/plain",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/absent":
            return self.send_error(404)
        if self.path in ELSEWHERE:
            self.send_response(302)
            self.send_header("Location", ELSEWHERE[self.path])
            return self.end_headers()
        self.send_response(200)
        if self.path not in ("/unsized", "/endless"):
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(BODY[: 1000 if self.path == "/short" else None])
            while self.path == "/endless":
                self.wfile.write(BODY)
                self.server.sent += len(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked, running.sent = [], 0
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield running
        running.shutdown()


@pytest.mark.parametrize("name", ["good", "unsized"])
def test_a_file_is_downloaded_once_and_verified(server, tmp_path, name):
    path = tmp_path / "sub" / "file.csv"
    for _ in range(2):
        assert fetch(f"{server.url}/{name}", path, sha256=SUM) == path
    assert path.read_bytes() == BODY and server.asked == [f"/{name}"]
    assert os.listdir(path.parent) == ["file.csv"]


@pytest.mark.parametrize(
    ("name", "settings", "error", "words"),
    [
        ("good", {"sha256": "0" * 64}, ValueError, (SUM, "0" * 64, "wrong checksum")),
        ("short", {"sha256": SUM}, ValueError, ("cut short", "1,000 of 128,000")),
        ("short", {}, ValueError, ("cut short",)),
        ("good", {"max_bytes": 100}, ValueError, ("longer than 100 bytes",)),
        ("absent", {}, FileNotFoundError, ("404", "paths.data_dir", "file.csv", "/absent")),
        ("elsewhere", {}, FileNotFoundError, ("paths.data_dir", "ftp://", "not https")),
        ("plain", {}, FileNotFoundError, ("http://example.org", "not https")),
        ("twice", {}, FileNotFoundError, ("http://example.org", "not https")),
        ("endless", {"max_bytes": 3 << 20}, ValueError, ("longer than 3,145,728 bytes",)),
    ],
)
def test_a_failed_download_leaves_nothing_behind(server, tmp_path, name, settings, error, words):
    path = tmp_path / "file.csv"
    with pytest.raises(error) as caught:
        fetch(f"{server.url}/{name}", path, **settings)
    for word in words:
        assert word in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_the_temporary_name_does_not_end_like_the_file(server, tmp_path, monkeypatch):
    seen = []

    def replace(source, target):
        seen.append(os.fspath(source))
        os.rename(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    fetch(f"{server.url}/good", tmp_path / "file.ckpt", sha256=SUM)
    assert seen and not seen[0].endswith(".ckpt") and os.path.dirname(seen[0]) == str(tmp_path)


def test_a_full_disk_is_said_and_leaves_nothing_behind(server, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_stream", full)
    with pytest.raises(ValueError, match=r"disk is full .* paths\.data_dir"):
        fetch(f"{server.url}/good", tmp_path / "file.csv")
    assert os.listdir(tmp_path) == []


def test_a_silent_server_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(FileNotFoundError, match=r"timed out.*paths\.data_dir"):
            fetch(url, tmp_path / "file.csv", timeout_s=0.2)


def test_an_endless_answer_is_cut_and_the_server_let_go(server, tmp_path):
    with pytest.raises(ValueError, match="longer than"):
        fetch(f"{server.url}/endless", tmp_path / "x", max_bytes=1 << 20)
    time.sleep(0.1)
    sent = server.sent
    time.sleep(0.1)
    assert server.sent == sent < 1 << 28


def test_a_redirect_is_followed_where_it_may_lead(server, tmp_path):
    assert fetch(f"{server.url}/onwards", tmp_path / "x", sha256=SUM).read_bytes() == BODY
    assert server.asked == ["/onwards", "/good"]


def test_https_never_leads_to_plain_http_not_even_on_this_machine(tmp_path):
    handler, request = files._Redirects(), files.Request("https://example.org/x")
    with pytest.raises(files.HTTPError, match="not https"):
        handler.redirect_request(request, None, 302, "", {}, "http://localhost/x")
    followed = handler.redirect_request(request, None, 302, "", {}, "https://example.com/y")
    assert followed.full_url == "https://example.com/y"


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://localhost/x", "file:///etc/passwd"])
def test_only_https_is_taken(tmp_path, url):
    with pytest.raises(ValueError, match="https"):
        fetch(url, tmp_path / "x")


def test_a_file_that_is_there_is_verified_and_never_asked_for(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match="wrong checksum") as caught:
        fetch(f"{server.url}/good", path, sha256=SUM)
    assert SUM in str(caught.value) and hashlib.sha256(b"other").hexdigest() in str(caught.value)
    assert path.read_bytes() == b"other" and server.asked == []
    path.write_bytes(BODY)
    check_sha256(path, SUM)


def test_a_file_without_a_published_checksum_is_called_unverified_once(server, tmp_path):
    with pytest.warns(UserWarning) as seen:
        fetch(f"{server.url}/good", tmp_path / "file")
    assert sum("unverified" in str(one.message) for one in seen) == 1


@pytest.mark.filterwarnings("ignore:A network error")
def test_openml_offline_gives_a_clear_error_in_seconds(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    before, start = socket.getdefaulttimeout(), time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"41168 is not cached.*paths\.data_dir"):
        Jannis(batch_size=8, data_dir=str(tmp_path)).prepare()
    assert time.monotonic() - start < 5 and socket.getdefaulttimeout() == before


class SmallHiggs(Higgs):
    n_rows, n_test = 60, 20


def higgs_file(folder, n_rows=60, n_columns=29, keep=None):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n_rows, n_columns))
    table[:, 0] = np.arange(n_rows) % 2
    lines = "".join(",".join(f"{v:.18e}" for v in row) + "\n" for row in table)
    (folder / "higgs").mkdir(exist_ok=True)
    (folder / "higgs" / "HIGGS.csv.gz").write_bytes(gzip.compress(lines.encode())[:keep])
    return table


def test_higgs_is_read_once_into_a_cache_that_is_rebuilt_when_incomplete(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa.data.higgs._CHUNK", 7)
    table = higgs_file(tmp_path)
    data = SmallHiggs(batch_size=8, data_dir=str(tmp_path))
    data.prepare()
    assert [(name, len(part)) for name, part in data.splits.items()] == [
        ("train", 38),
        ("val", 2),
        ("test", 20),
    ]
    assert data.spec.columns == tuple(COLUMNS) and data.spec.classes == ("0", "1")
    last = data.load()["test"][COLUMNS].to_numpy()
    np.testing.assert_allclose(last, table[40:, 1:], rtol=1e-6)  # the last rows are the test split
    assert sorted(os.listdir(tmp_path / "higgs")) == ["HIGGS.csv.gz", "higgs.f32"]
    cache = tmp_path / "higgs" / "higgs.f32"
    (tmp_path / "higgs" / "HIGGS.csv.gz").rename(tmp_path / "aside.gz")
    again = SmallHiggs(batch_size=8, data_dir=str(tmp_path))
    again.prepare()  # from the cache alone
    np.testing.assert_array_equal(again.splits["test"].x, data.splits["test"].x)
    cache.write_bytes(cache.read_bytes()[:-4])
    (tmp_path / "aside.gz").rename(tmp_path / "higgs" / "HIGGS.csv.gz")
    SmallHiggs(batch_size=8, data_dir=str(tmp_path)).prepare()
    assert cache.stat().st_size == 4 * 29 * 60


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"n_rows": 50}, "50 rows and 29 columns, expected 60"),
        ({"n_rows": 70}, "at least 70 rows"),
        ({"n_columns": 28}, "28 columns"),
        ({"keep": 5000}, "damaged or cut short"),
        ({"keep": 0}, "damaged or cut short"),
    ],
)
def test_another_higgs_file_is_refused_and_leaves_no_cache(tmp_path, made, words):
    higgs_file(tmp_path, **made)
    with pytest.raises(ValueError, match=words):
        SmallHiggs(batch_size=8, data_dir=str(tmp_path)).prepare()
    assert os.listdir(tmp_path / "higgs") == ["HIGGS.csv.gz"]


def test_whoever_only_looks_downloads_nothing(server, tmp_path):
    from torchvision.datasets import CIFAR10

    from jepa.data.torchvision_sets import open_set

    with files.without_downloads():
        with pytest.raises(FileNotFoundError, match="downloads nothing") as caught:
            fetch(f"{server.url}/good", tmp_path / "x")
        assert str(tmp_path / "x") in str(caught.value)
        with pytest.raises(FileNotFoundError, match="downloads nothing"):
            open_set(CIFAR10, [tmp_path], "cifar-10-batches-py", train=True)
        with pytest.raises(FileNotFoundError, match="downloads nothing"):
            Jannis(batch_size=8, data_dir=str(tmp_path)).prepare()
        (tmp_path / "there").write_bytes(BODY)
        assert fetch(f"{server.url}/good", tmp_path / "there", sha256=SUM)
    assert server.asked == [] and os.listdir(tmp_path) == ["there"]
    assert fetch(f"{server.url}/good", tmp_path / "x", sha256=SUM)
