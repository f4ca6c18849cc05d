"""Downloads against a server on this machine that behaves well, badly, or not at all.

And the catalogue of licences: the one that is shipped, and what is refused in a wrong one.
"""

from __future__ import annotations

import ast
import copy
import errno
import hashlib
import http.server
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml

from sgdm_utils.errors import DatasetError
from sgdm_utils.workflow import paths
from sgdm_utils.workflow.downloads import catalogue as downloads_catalogue
from sgdm_utils.workflow.downloads import fetch as downloads_fetch
from sgdm_utils.workflow.downloads import transfers
from sgdm_utils.workflow.downloads.catalogue import CatalogueError, LicenceError
from sgdm_utils.workflow.downloads.fetch import fetch
from sgdm_utils.workflow.downloads.transfers import DownloadError, Retry

QUICK = Retry(attempts=3, backoff_s=0.001, timeout_s=5)
CONTENT = np.random.default_rng(20).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAMED_IN_THE_ISSUE = {
    "things_eeg2_raw", "things_eeg2_preprocessed", "things_eeg2_250hz", "things_eeg2_bids",
    "things_eeg2_image_set", "things_eeg1", "things_metadata", "things_plus_cc0",
    "alljoined_1_6m", "alljoined_05_125", "eeg_imagenet", "perceivelab", "kilogram",
    "eeg_kilogram", "muse_n170", "weights_openclip_vit_h_14", "weights_sdxl_turbo",
    "weights_sd15", "weights_lpips_alexnet", "weights_lpips_vgg16",
}  # fmt: skip


# ------------------------------------------------------------------ a server of many moods


@dataclass
class Server:
    """What is served under one address, how, and what was asked for and sent.

    Attributes
    ----------
    breaks : list of int
        After how many bytes the n-th answer is broken off; -1 never. The last one repeats.
    states : list of int
        HTTP state of the n-th answer instead of the content; 0 for the content.
    log : list of (range header or "", bytes sent)
    """

    content: bytes = CONTENT
    breaks: list[int] = field(default_factory=list)
    states: list[int] = field(default_factory=list)
    ranges: bool = True
    etag: str = '"v1"'
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    wrong_range: bool = False
    hold: threading.Event | None = None
    log: list[tuple[str, int]] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file.bin"

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        asked, number = handler.headers.get("Range", ""), len(self.log)
        self.asked.append(dict(handler.headers))
        state = self.states[number] if number < len(self.states) else 0
        if state:
            self.log.append((asked, 0))
            handler.send_response(state)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        same = handler.headers.get("If-Range", self.etag) == self.etag
        if asked and self.ranges and same:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
            if start >= len(self.content):
                self.log.append((asked, 0))
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.content)}")
                handler.end_headers()
                return
            handler.send_response(206)
            told = start + 7 if self.wrong_range else start
            handler.send_header(
                "Content-Range", f"bytes {told}-{len(self.content) - 1}/{len(self.content)}"
            )
        else:
            handler.send_response(200)
        body = self.content[start:]
        stop = self.breaks[min(number, len(self.breaks) - 1)] if self.breaks else -1
        sent = body if stop < 0 else body[:stop]
        self.log.append((asked, len(sent)))  # before a client can react to the header
        if self.length:
            handler.send_header("Content-Length", str(len(body)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(sent)
        handler.wfile.flush()
        if self.hold is not None:
            self.hold.wait(30)


@pytest.fixture
def serve():
    """Start servers; all are stopped at the end."""
    running = []

    def start(server: Server) -> Server:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        server.port = httpd.server_port
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        running.append((httpd, server))
        return server

    yield start
    for httpd, server in running:
        if server.hold is not None:
            server.hold.set()
        httpd.shutdown()
        httpd.server_close()


def entry(**changes) -> dict:
    """The content of one entry that is in order."""
    return {
        "kind": "recording", "title": "A test", "about": "Bytes", "holder": "A. Holder",
        "homepage": "https://example.org/set", "licence": "CC-BY-4.0", "accept": "no",
        "redistribution": "with attribution", "size": None, "verified": True,
        "citation": "Holder (2020)", "must_not": ["Sell it."], "forms": [], "files": [],
        "manual": ["Read the page."],
    } | changes  # fmt: skip


def remote(url: str, path: str = "sub-01/file.bin", **changes) -> dict:
    return {"path": path, "url": url, "size": None, "sha256": None} | changes


def catalogue(folder: Path, *files: dict, **changes) -> Path:
    """Write a catalogue with one entry, `test_set`."""
    path = folder / "licences.yaml"
    content = {"test_set": entry(files=list(files), **changes)}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def get(folder: Path, *files: dict, **options) -> list[Path]:
    """Fetch into `folder / "data"`."""
    changes = options.pop("changes", {})
    return fetch(
        "test_set",
        destination=folder / "data",
        catalogue=catalogue(folder, *files, **changes),
        progress=False,
        retry=options.pop("retry", QUICK),
        **options,
    )


def there(folder: Path) -> set[str]:
    """Every file below the destination, without the locks that `atomic` leaves beside folders."""
    root = folder / "data"
    found = [p for p in root.rglob("*") if p.is_file()]
    found = [p for p in found if p.suffix != ".lock" or p.name == ".downloads.lock"]
    return {p.relative_to(root).as_posix() for p in found}


def ledger(folder: Path) -> dict:
    return json.loads((folder / "data" / "downloads.json").read_text())


# ------------------------------------------------------------------ a good day


def test_a_file_is_fetched_verified_and_written_down(tmp_path, serve):
    server = serve(Server())
    (path,) = get(tmp_path, remote(server.url, size=len(CONTENT), sha256=SHA256))
    assert path == tmp_path / "data" / "sub-01" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert there(tmp_path) == {"sub-01/file.bin", "downloads.json"}  # no part, no lock
    noted = ledger(tmp_path)["files"]["sub-01/file.bin"]
    assert (noted["sha256"], noted["size"], noted["url"]) == (SHA256, len(CONTENT), server.url)
    assert noted["published"] == f"sha256:{SHA256}"
    assert (noted["entry"], noted["licence"]) == ("test_set", "CC-BY-4.0")


def test_a_file_that_is_there_is_not_fetched_again(tmp_path, serve):
    server = serve(Server())
    file = remote(server.url, size=len(CONTENT), sha256=SHA256)
    (path,) = get(tmp_path, file)
    before = path.stat()
    get(tmp_path, file)
    assert len(server.log) == 1
    os.utime(path)  # another time, so that the content is read again
    get(tmp_path, file)
    assert len(server.log) == 1 and path.stat().st_ino == before.st_ino


def test_the_default_folder_is_the_raw_folder_of_the_set(tmp_study, serve):
    server = serve(Server())
    where = catalogue(tmp_study, remote(server.url))
    (path,) = fetch("test_set", catalogue=where, progress=False, retry=QUICK)
    assert path == tmp_study / "data" / "raw" / "test_set" / "sub-01" / "file.bin"


def test_files_are_chosen_by_pattern(tmp_path, serve):
    server = serve(Server())
    files = [remote(server.url, f"sub-0{n}/file.bin") for n in (1, 2, 3)]
    found = get(tmp_path, *files, files="sub-0[13]/*")
    assert [p.parent.name for p in found] == ["sub-01", "sub-03"]
    with pytest.raises(DownloadError, match=r"no file matches 'sub-09/\*'; there is sub-01/file"):
        get(tmp_path, *files, files=["sub-01/*", "sub-09/*"])


def test_an_md5_is_verified_too(tmp_path, serve):
    server = serve(Server())
    good = hashlib.md5(CONTENT).hexdigest()
    assert get(tmp_path, remote(server.url, md5=good))[0].read_bytes() == CONTENT
    with pytest.raises(DownloadError, match=f"md5:{'0' * 32}.*{good}"):
        get(tmp_path, remote(server.url, "other.bin", md5="0" * 32))
    assert "other.bin" not in there(tmp_path)


def test_the_beginning_of_a_checksum_is_verified(tmp_path, serve):
    server = serve(Server())
    assert get(tmp_path, remote(server.url, sha256_prefix=SHA256[:8]))
    with pytest.raises(DownloadError, match=f"begins with 00000000, received {SHA256}"):
        get(tmp_path, remote(server.url, "other.bin", sha256_prefix="00000000"))
    assert "other.bin" not in there(tmp_path)


# ------------------------------------------------------------------ interruptions


def test_a_broken_transfer_is_continued_where_it_broke(tmp_path, serve):
    server = serve(Server(breaks=[100_000, -1]))
    (path,) = get(tmp_path, remote(server.url, size=len(CONTENT), sha256=SHA256))
    assert path.read_bytes() == CONTENT
    (first, sent), (second, rest) = server.log
    assert first == "" and sent == 100_000
    start = int(second.removeprefix("bytes=").removesuffix("-"))
    assert 100_000 - (16 << 10) < start <= 100_000  # at most one chunk is sent twice
    assert rest == len(CONTENT) - start
    assert server.asked[1]["If-Range"] == '"v1"'
    assert server.asked[0]["Accept-Encoding"] == "identity"


def test_another_call_continues_too(tmp_path, serve):
    server = serve(Server(breaks=[100_000, -1]))
    file = remote(server.url, sha256=SHA256)
    with pytest.raises(DownloadError, match="98.3 kB have arrived and are kept"):
        get(tmp_path, file, retry=Retry(attempts=1))
    assert there(tmp_path) == {"sub-01/file.bin.part", "sub-01/file.bin.part.json"}
    (path,) = get(tmp_path, file)
    assert path.read_bytes() == CONTENT
    assert server.log[1] == ("bytes=98304-", len(CONTENT) - 98304)
    assert there(tmp_path) == {"sub-01/file.bin", "downloads.json"}


def test_a_server_without_ranges_sends_everything_again(tmp_path, serve):
    server = serve(Server(breaks=[100_000, -1], ranges=False))
    (path,) = get(tmp_path, remote(server.url))
    assert path.read_bytes() == CONTENT
    assert server.log[1][0] and server.log[1][1] == len(CONTENT)


def test_bytes_of_two_versions_are_not_joined(tmp_path, serve):
    """No checksum is known, so nothing but the version could tell."""
    server = serve(Server(breaks=[100_000, -1]))
    with pytest.raises(DownloadError):
        get(tmp_path, remote(server.url), retry=Retry(attempts=1))
    server.content, server.etag = CONTENT[::-1], '"v2"'
    (path,) = get(tmp_path, remote(server.url))
    assert path.read_bytes() == CONTENT[::-1]


def test_a_part_of_another_address_or_of_unknown_origin_is_not_continued(tmp_path, serve):
    server = serve(Server())
    part = tmp_path / "data" / "sub-01" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert server.log == [("", len(CONTENT))]


def test_a_wrong_range_is_not_appended(tmp_path, serve):
    server = serve(Server(breaks=[100_000, -1], wrong_range=True))
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert [asked for asked, _ in server.log] == ["", "bytes=98304-", ""]


def test_a_part_that_is_whole_is_not_sent_again(tmp_path, serve):
    """Killed after the last byte; the server that told no length answers 416."""
    server = serve(Server(length=False))
    part = tmp_path / "data" / "sub-01" / "file.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    part.with_name("file.bin.part.json").write_text(
        json.dumps({"url": server.url, "total": None, "version": '"v1"', "staged": "tmpabcdefgh"})
    )
    (part.parent / "tmpabcdefgh").write_bytes(CONTENT)
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert server.log == [(f"bytes={len(CONTENT)}-", 0)]
    assert there(tmp_path) == {"sub-01/file.bin", "downloads.json"}  # the stray name went, too


def test_truncation_without_a_length_is_seen_by_the_known_size(tmp_path, serve):
    server = serve(Server(breaks=[100_000, -1], length=False))
    (path,) = get(tmp_path, remote(server.url, size=len(CONTENT)))
    assert path.read_bytes() == CONTENT and len(server.log) == 2


def test_a_server_that_always_breaks_off_is_given_up(tmp_path, serve):
    server = serve(Server(breaks=[40_000], ranges=False))
    with pytest.raises(DownloadError, match="in 3 attempts") as caught:
        get(tmp_path, remote(server.url, size=len(CONTENT)))
    assert len(server.log) == 3
    assert "have arrived and are kept" in str(caught.value)
    assert "sub-01/file.bin" not in there(tmp_path)


def test_waits_grow_and_are_bounded(tmp_path, serve, monkeypatch):
    server = serve(Server(states=[503, 503, 503, 503]))
    server.headers["Retry-After"] = "5"
    waits = []
    monkeypatch.setattr(transfers.time, "sleep", waits.append)
    get(tmp_path, remote(server.url), retry=Retry(attempts=5, backoff_s=1, longest_wait_s=5))
    assert waits == [1, 2, 4, 5]


def test_an_exception_in_the_middle_leaves_the_part_only(tmp_path, serve, monkeypatch):
    server = serve(Server())
    read = requests.Response.iter_content

    def interrupted(self, size):
        for number, chunk in enumerate(read(self, size)):
            if number == 5:
                raise KeyboardInterrupt
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(requests.Response, "iter_content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path, remote(server.url))
    assert there(tmp_path) == {"sub-01/file.bin.part", "sub-01/file.bin.part.json"}
    part = tmp_path / "data" / "sub-01" / "file.bin.part"
    assert part.read_bytes() == CONTENT[: 5 * (16 << 10)]
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert server.log[1][0] == f"bytes={5 * (16 << 10)}-"


def test_an_exception_while_the_checksum_is_computed_loses_nothing(tmp_path, serve, monkeypatch):
    """Of 8 GB that takes half a minute; what was received must not be received again."""
    server = serve(Server())

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pooch.core.hash_matches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path, remote(server.url, sha256=SHA256))
    assert there(tmp_path) == {"sub-01/file.bin.part", "sub-01/file.bin.part.json"}
    assert get(tmp_path, remote(server.url, sha256=SHA256))[0].read_bytes() == CONTENT
    assert len(server.log) == 1


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_killed_process_leaves_the_part_only_and_no_lock_that_holds(tmp_path, serve):
    server = serve(Server(breaks=[200_000, -1], hold=threading.Event()))
    where = catalogue(tmp_path, remote(server.url))
    code = (
        "import sys; from pathlib import Path; from sgdm_utils.workflow.downloads.fetch import fetch; "
        "fetch('test_set', destination=Path(sys.argv[1]), catalogue=Path(sys.argv[2]), "
        "progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data"), str(where)], cwd=paths.project_root()
    )
    part = tmp_path / "data" / "sub-01" / "file.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 100_000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    with pytest.raises(DownloadError, match="another process is fetching into"):
        get(tmp_path, remote(server.url))
    process.send_signal(signal.SIGKILL)
    process.wait()
    server.hold.set()
    left = {name for name in there(tmp_path) if not name.startswith(".")}
    assert left == {"sub-01/file.bin.part", "sub-01/file.bin.part.json"}
    kept = part.stat().st_size
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert server.log[1] == (f"bytes={kept}-", len(CONTENT) - kept)


# ------------------------------------------------------------------ from a folder, without a network


@pytest.mark.parametrize("lies", ["sub-01/file.bin", "file.bin"])
def test_files_are_taken_from_a_folder_and_verified(tmp_path, serve, lies):
    server, stock = serve(Server()), tmp_path / "stock"
    (stock / lies).parent.mkdir(parents=True)
    (stock / lies).write_bytes(CONTENT[::-1])
    file = remote(server.url, size=len(CONTENT), sha256=SHA256)
    with pytest.raises(DownloadError, match=f"is not the published file: expected sha256:{SHA256}"):
        get(tmp_path, file, source=stock)
    with pytest.raises(DownloadError, match="holds no such file. Name the folder that it lies in"):
        get(tmp_path, file, source=tmp_path / "elsewhere")
    assert there(tmp_path) == set()
    (stock / lies).write_bytes(CONTENT)
    assert get(tmp_path, file, source=stock)[0].read_bytes() == CONTENT
    assert (stock / lies).is_file() and not server.log
    assert get(tmp_path, file)[0].read_bytes() == CONTENT  # what was copied counts as fetched
    assert not server.log


# ------------------------------------------------------------------ wrong files


def test_a_wrong_checksum_is_reported_and_the_file_removed(tmp_path, serve):
    server = serve(Server(content=CONTENT[::-1]))
    received = hashlib.sha256(CONTENT[::-1]).hexdigest()
    with pytest.raises(DownloadError, match=f"expected sha256:{SHA256}.*{received}") as caught:
        get(tmp_path, remote(server.url, size=len(CONTENT), sha256=SHA256))
    assert there(tmp_path) == set()
    assert len(server.log) == 1  # the server would send the same again
    assert "By hand (https://example.org/set)" in str(caught.value)


@pytest.mark.parametrize("length", [True, False])
def test_a_wrong_size_is_reported_and_the_file_removed(tmp_path, serve, length):
    server = serve(Server(content=CONTENT + b"more", length=length))
    with pytest.raises(DownloadError, match="expected 300,000 bytes, received 300,004") as caught:
        get(tmp_path, remote(server.url, size=len(CONTENT)))
    # with a length in the header it is seen before anything is received
    assert ("Nothing was kept" if length else "it was removed") in str(caught.value)
    assert there(tmp_path) == set()
    assert len(server.log) == 1


def test_a_web_page_is_not_taken_for_the_file(tmp_path, serve):
    server = serve(Server(content=b"<html>log in</html>"))
    server.headers["Content-Type"] = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="sends a web page"):
        get(tmp_path, remote(server.url))
    assert there(tmp_path) == set()


def test_compressed_content_is_refused(tmp_path, serve):
    server = serve(Server(headers={"Content-Encoding": "gzip"}))
    with pytest.raises(DownloadError, match=r"compressed content \(gzip\) unasked"):
        get(tmp_path, remote(server.url))


def test_what_was_fetched_before_stays_when_the_next_file_is_wrong(tmp_path, serve):
    server = serve(Server())
    good, bad = remote(server.url, "a.bin"), remote(server.url, "b.bin", sha256="0" * 64)
    with pytest.raises(DownloadError, match="b.bin"):
        get(tmp_path, good, bad)
    assert there(tmp_path) == {"a.bin", "downloads.json"}
    assert set(ledger(tmp_path)["files"]) == {"a.bin"}


def test_first_use_is_printed_and_trusted_later(tmp_path, serve, capsys):
    server = serve(Server())
    (path,) = get(tmp_path, remote(server.url))
    said = capsys.readouterr().out
    assert SHA256 in said and "no checksum was published" in said
    assert ledger(tmp_path)["files"]["sub-01/file.bin"]["published"] is None
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="recorded in downloads.json when the file was first"):
        get(tmp_path, remote(server.url))
    assert there(tmp_path) == {"downloads.json"}
    server.content = CONTENT
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert SHA256 not in capsys.readouterr().out


def test_a_file_that_was_changed_here_is_refused_and_left(tmp_path, serve):
    server = serve(Server())
    (path,) = get(tmp_path, remote(server.url))
    path.write_bytes(b"edited")
    with pytest.raises(DownloadError, match="as recorded in downloads.json, received .* left as"):
        get(tmp_path, remote(server.url))
    assert path.read_bytes() == b"edited"
    with pytest.raises(DownloadError, match="expected 300,000 bytes, received 6. It was left"):
        get(tmp_path, remote(server.url, size=len(CONTENT)))
    with pytest.raises(DownloadError, match=f"expected sha256:{SHA256}, received sha256:"):
        get(tmp_path, remote(server.url, sha256=SHA256))
    assert path.read_bytes() == b"edited" and len(server.log) == 1


def test_a_checksum_published_later_is_compared_too(tmp_path, serve):
    server = serve(Server())
    (path,) = get(tmp_path, remote(server.url))
    for published in ({"sha256": "0" * 64}, {"md5": "0" * 32}, {"sha256_prefix": "0" * 8}):
        with pytest.raises(DownloadError, match="is not the published file: expected .*00000000"):
            get(tmp_path, remote(server.url, **published))
    assert get(tmp_path, remote(server.url, sha256=SHA256)) == [path]
    assert len(server.log) == 1


def test_a_damaged_ledger_is_reported(tmp_path, serve):
    server = serve(Server())
    get(tmp_path, remote(server.url))
    where = tmp_path / "data" / "downloads.json"
    for text in ("{", "[]", '{"files": {"sub-01/file.bin": {}}}'):
        where.write_text(text)
        with pytest.raises(DownloadError, match="downloads.json is damaged"):
            get(tmp_path, remote(server.url))
        assert where.read_text() == text


def test_a_file_put_there_by_hand_is_verified(tmp_path):
    path = tmp_path / "data" / "sub-01" / "file.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    nowhere = "http://127.0.0.1:9/file.bin"
    assert get(tmp_path, remote(nowhere, size=len(CONTENT), sha256=SHA256)) == [path]
    assert ledger(tmp_path)["files"]["sub-01/file.bin"]["sha256"] == SHA256


# ------------------------------------------------------------------ no network


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_refused_connection_gives_the_manual_route(tmp_study):
    url = f"http://127.0.0.1:{closed_port()}/file.bin"
    file = remote(url, size=300_000, sha256=SHA256)
    where = catalogue(tmp_study, file, accept="required")
    with pytest.raises(DownloadError) as caught:
        fetch("test_set", accept_licence="CC-BY-4.0", catalogue=where, progress=False, retry=QUICK)
    said = str(caught.value)
    assert "refused" in said and "in 3 attempts" in said
    assert "1. Read the page." in said  # the entry's own steps come first
    assert url in said and "raw/test_set/sub-01/file.bin (300 kB, sha256:" in said
    assert "python -m sgdm_utils fetch test_set --accept CC-BY-4.0" in said
    assert isinstance(caught.value, DatasetError)


def test_a_name_that_is_not_found_gives_the_manual_route(tmp_path):
    """`.invalid` never resolves (RFC 2606); the test's network guard refuses it at the latest."""
    with pytest.raises(DownloadError, match="no connection, or it broke off") as caught:
        get(tmp_path, remote("http://host.invalid/file.bin"), retry=Retry(attempts=1))
    assert "By hand" in str(caught.value) and "--destination" in str(caught.value)


def test_a_server_that_says_nothing(tmp_path):
    """It accepts, and closes at once; or never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        count = []

        def close_at_once():
            for _ in range(2):
                connection, _ = listener.accept()
                count.append(1)
                connection.close()

        threading.Thread(target=close_at_once, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match="in 2 attempts"):
            get(tmp_path, remote(url), retry=Retry(attempts=2, backoff_s=0.001))
        assert len(count) == 2
        with pytest.raises(DownloadError, match="timed out"):
            get(tmp_path, remote(url), retry=Retry(attempts=1, timeout_s=0.2))
    assert there(tmp_path) == set()


def test_not_found_is_not_tried_again(tmp_path, serve):
    server = serve(Server(states=[404]))
    with pytest.raises(DownloadError, match="answers 404 Not Found. The file was moved"):
        get(tmp_path, remote(server.url))
    assert len(server.log) == 1 and there(tmp_path) == set()
    assert not (tmp_path / "data" / "sub-01").exists()


def test_a_busy_server_is_tried_again(tmp_path, serve):
    server = serve(Server(states=[503, 429]))
    assert get(tmp_path, remote(server.url))[0].read_bytes() == CONTENT
    assert len(server.log) == 3


def test_an_entry_without_addresses_tells_the_manual_route(tmp_path):
    with pytest.raises(DownloadError, match="no address of a single file is known") as caught:
        get(tmp_path)
    assert "1. Read the page." in str(caught.value)
    assert f"2. Put the files below {paths.relative(tmp_path / 'data')}/" in str(caught.value)
    assert not (tmp_path / "data").exists()


# ------------------------------------------------------------------ disk


def test_a_full_disk_is_seen_beforehand(tmp_path, serve, monkeypatch):
    server = serve(Server())
    usage = shutil.disk_usage(tmp_path)._replace(free=299_999)
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="300 kB are needed and 300 kB are free at"):
        get(tmp_path, remote(server.url, size=300_000))
    assert not server.log
    with pytest.raises(DownloadError, match="300 kB are needed"):
        get(tmp_path, remote(server.url))  # the size is known from the answer only
    assert server.log and there(tmp_path) == set()


def test_a_disk_that_fills_up_keeps_the_part(tmp_path, serve, monkeypatch):
    server = serve(Server())

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfers.os, "fsync", lambda handle: None)
    monkeypatch.setattr(transfers.Transfer, "_receive", lambda self, *_: full(self))
    with pytest.raises(DownloadError, match="the disk is full; what has arrived is kept in"):
        get(tmp_path, remote(server.url))


def test_without_hard_links_it_works_too(tmp_path, serve, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(transfers.os, "link", refuse)
    server = serve(Server())
    assert get(tmp_path, remote(server.url, sha256=SHA256))[0].read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="sent another file"):
        get(tmp_path, remote(server.url, "other.bin", sha256="0" * 64))
    assert there(tmp_path) == {"sub-01/file.bin", "downloads.json"}


# ------------------------------------------------------------------ licences


def test_a_licence_must_be_accepted_by_its_name(tmp_path, serve):
    server = serve(Server())
    changes = {"licence": "CC-BY-NC-ND-4.0", "accept": "required"}
    with pytest.raises(LicenceError, match="and it was not") as caught:
        get(tmp_path, remote(server.url), changes=changes)
    said = str(caught.value)
    for part in ("CC-BY-NC-ND-4.0", "A. Holder", "https://example.org/set", "Sell it."):
        assert part in said
    assert 'accept_licence="CC-BY-NC-ND-4.0"' in said and "--accept CC-BY-NC-ND-4.0" in said
    with pytest.raises(LicenceError, match="'yes' is not its licence"):
        get(tmp_path, remote(server.url), changes=changes, accept_licence="yes")
    assert not server.log and not (tmp_path / "data").exists()
    get(tmp_path, remote(server.url), changes=changes, accept_licence="CC-BY-NC-ND-4.0")
    assert len(server.log) == 1


# ------------------------------------------------------------------ archives


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as bundle:
        for info, content in members:
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_unpacked_once_without_its_single_folder(tmp_path, serve):
    server = serve(Server(content=zip_bytes({"set/a/1.txt": b"one", "set/2.txt": b"two"})))
    file = remote(server.url, "images.zip")
    (folder,) = get(tmp_path, file, unpack_archives=True)
    assert folder == tmp_path / "data" / "images"
    assert there(tmp_path) == {"images.zip", "images/a/1.txt", "images/2.txt", "downloads.json"}
    (folder / "2.txt").write_bytes(b"kept")
    get(tmp_path, file, unpack_archives=True)
    assert (folder / "2.txt").read_bytes() == b"kept" and len(server.log) == 1


def test_a_folder_that_is_in_the_way_is_left(tmp_path, serve):
    server = serve(Server(content=zip_bytes({"a.txt": b"one"})))
    mine = tmp_path / "data" / "images" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="is there already and was not unpacked from"):
        get(tmp_path, remote(server.url, "images.zip"), unpack_archives=True)
    assert there(tmp_path) == {"images.zip", "images/mine.txt", "downloads.json"}


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w"])
def test_tar_archives(tmp_path, mode):
    suffix = {"w:gz": ".tar.gz", "w:xz": ".tar.xz", "w": ".tar"}[mode]
    folder_entry = tarfile.TarInfo("set")
    folder_entry.type = tarfile.DIRTYPE
    archive = tmp_path / f"set{suffix}"
    archive.write_bytes(
        tar_bytes((folder_entry, b""), (tarfile.TarInfo("./set/x.txt"), b"x"), mode=mode)
    )
    downloads_fetch.unpack(archive, tmp_path / "set")
    assert (tmp_path / "set" / "x.txt").read_bytes() == b"x"


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:evil", "a/..", ".."]
)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path, name):
    archive = tmp_path / "in" / "x.zip"
    archive.parent.mkdir()
    archive.write_bytes(zip_bytes({"good.txt": b"good", name: b"evil"}))
    with pytest.raises(DownloadError, match="outside the folder. Nothing was"):
        downloads_fetch.unpack(archive, tmp_path / "in" / "x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [archive]
    tar = tmp_path / "in" / "x.tar.gz"
    tar.write_bytes(tar_bytes((tarfile.TarInfo(name), b"evil")))
    with pytest.raises(DownloadError, match="outside"):
        downloads_fetch.unpack(tar, tmp_path / "in" / "x")
    assert not (tmp_path / "in" / "x").exists()


def test_links_and_devices_are_refused(tmp_path):
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive = tmp_path / "x.tar"
        archive.write_bytes(tar_bytes((info, b""), mode="w"))
        with pytest.raises(DownloadError, match="link is a link or device"):
            downloads_fetch.unpack(archive, tmp_path / "x")
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as bundle:
        bundle.writestr(info, "/etc/passwd")
    with pytest.raises(DownloadError, match="link is a link or device"):
        downloads_fetch.unpack(tmp_path / "x.zip", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_other_archives_that_are_refused(tmp_path, monkeypatch):
    whole = zip_bytes({"d/a.txt": bytes(range(256)) * 999, "d/b.txt": b"b"})
    archive, folder = tmp_path / "x.zip", tmp_path / "x"
    damaged = bytearray(whole)
    damaged[60:90] = b"\xff" * 30  # inside the compressed bytes of a.txt
    for content in (whole[:-30], bytes(damaged), b"<html>"):
        archive.write_bytes(content)
        with pytest.raises(DownloadError, match="cannot be unpacked .* fetch it again"):
            downloads_fetch.unpack(archive, folder)
    (tmp_path / "y.tar.gz").write_bytes(tar_bytes((tarfile.TarInfo("a"), b"a" * 9999))[:60])
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        downloads_fetch.unpack(tmp_path / "y.tar.gz", folder)
    archive.write_bytes(zip_bytes({}))
    with pytest.raises(DownloadError, match="holds no file"):
        downloads_fetch.unpack(archive, folder)
    archive.write_bytes(zip_bytes({"a": b"1", "a/b": b"2", "c/d": b"3"}))
    with pytest.raises(DownloadError, match="a.* stands there twice"):
        downloads_fetch.unpack(archive, folder)
    locked = bytearray(whole)
    for marker, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # bit 0: encrypted
        locked[locked.find(marker) + offset] |= 1
    archive.write_bytes(bytes(locked))
    with pytest.raises(DownloadError, match="needs a password, unpack it by hand"):
        downloads_fetch.unpack(archive, folder)
    archive.write_bytes(whole)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(transfers.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match="256 kB are needed"):
        downloads_fetch.unpack(archive, folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip", "y.tar.gz"]


# ------------------------------------------------------------------ the catalogue


def test_the_shipped_catalogue_is_in_order():
    shipped = downloads_catalogue.load_catalogue()
    assert NAMED_IN_THE_ISSUE <= set(shipped)
    for e in shipped.values():
        assert all(file.url.startswith("https://") for file in e.files), e.name
        assert len({file.url for file in e.files}) == len(e.files), e.name
        assert re.fullmatch(r"CC0-1\.0|CC-BY-4\.0|CC-BY-NC-ND-4\.0|CC-BY-NC-4\.0|MIT|BSD-3-Clause|Apache-2\.0|LicenseRef-.+",
                            e.licence), e.name  # fmt: skip
    for name in ("things_eeg2_image_set", "kilogram"):
        assert shipped[name].must_accept and shipped[name].redistribution == "not allowed"
    for name in ("alljoined_1_6m", "alljoined_05_125", "weights_sdxl_turbo", "perceivelab"):
        assert shipped[name].must_accept
    for name in ("perceivelab", "eeg_imagenet"):
        assert any("headline" in text for text in shipped[name].must_not)


def test_every_reader_has_an_entry_and_the_other_way_round():
    """The names are read from the source: importing every reader takes seconds."""
    tree = ast.parse(
        (paths.project_root() / "sgdm_utils/datasets/readers.py").read_text(encoding="utf-8")
    )
    table = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and node.target.id == "FORMS"
    )
    refused = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "BLOCK_DESIGNS"
    )
    readers = {ast.literal_eval(key) for key in [*table.keys, *refused.keys]} | {"bids"}
    assert len(readers) > 8
    assert {
        form for e in downloads_catalogue.load_catalogue().values() for form in e.forms
    } == readers


def test_the_repackaging_lists_both_files_of_ten_people():
    files = downloads_catalogue.find_entry("things_eeg2_250hz").files
    assert [f.path for f in files] == [
        f"Preprocessed_data_250Hz/sub-{s:02d}/preprocessed_eeg_{part}.npy"
        for s in range(1, 11)
        for part in ("training", "test")
    ]
    assert all(f.url.endswith(f.path) for f in files)


def test_the_trunks_are_the_ones_that_torchvision_and_the_metrics_name():
    """Read as text: importing torch would take longer than all the other tests here."""
    torchvision = Path(importlib.util.find_spec("torchvision").origin).parent / "models"
    metrics = "".join(
        p.read_text(encoding="utf-8")
        for p in (paths.project_root() / "sgdm_utils/metrics").glob("*.py")
    )
    for name, module in (
        ("weights_lpips_alexnet", "alexnet.py"),
        ("weights_lpips_vgg16", "vgg.py"),
    ):
        (file,) = downloads_catalogue.find_entry(name).files
        assert f'url="{file.url}"' in (torchvision / module).read_text(encoding="utf-8")
        assert f'"{file.path}"' in metrics
        assert file.sha256_prefix == Path(file.path).stem.rsplit("-", 1)[1]


@pytest.mark.parametrize(
    ("name", "folder", "n_files"),
    [
        ("muse_n170", "muse_n170", 6),
        ("brains_92_fmri", "brains_92", 2),
        ("brains_92_pictures", "brains_92", 2),
        ("atm_sub08", "atm_sub08", 2),
    ],
)
def test_checksums_of_small_recordings_are_those_of_the_real_files(name, folder, n_files):
    source = paths.project_root().parent / "shared" / "data" / folder
    if not source.is_dir():
        pytest.skip(f"{folder} is not beside the checkout (shared/data)")
    e = downloads_catalogue.find_entry(name)
    for file in e.files:
        content = (source / Path(file.path).name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    assert len(e.files) == n_files and e.size == sum(file.size for file in e.files)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accept": False}, r"test_set.accept: False is not one of .*YAML reads a bare no as false"),
        ({"licence": "CC BY 4.0"}, r"test_set.licence: 'CC BY 4.0' does not match .*An SPDX"),
        ({"licence": "CC-BY-NC-ND-4.0"}, r"test_set.accept: licence CC-BY-NC-ND-4.0 is not a plain"),
        ({"licence": "LicenseRef-x"}, r"test_set.accept: licence LicenseRef-x .* must be required"),
        ({"licens": "MIT"}, r"test_set: unknown key 'licens'; did you mean licence\?"),
        ({"holder": None}, r"test_set.holder: None is not of type 'string'"),
        ({"homepage": "osf.io/x"}, r"test_set.homepage: 'osf.io/x' does not match .*full address"),
        ({"size": "3 GB"}, r"test_set.size: '3 GB' is not of type 'integer', 'null'. Bytes"),
        ({"verified": "yes"}, r"test_set.verified: 'yes' is not of type 'boolean'"),
        ({"must_not": []}, r"test_set.must_not: \[\] should be non-empty"),
        ({"folder": "../up"}, r"test_set.folder: '../up' does not match .*A folder in data/raw"),
        ({"manual": []}, r"test_set: neither files nor manual steps"),
        ({"files": [remote("ftp://x/y")]}, r"test_set.files\[0\].url: 'ftp://x/y' does not match"),
        ({"files": [remote("http://x", sha256="AB" * 32)]}, r"files\[0\].sha256: .*lower case"),
        ({"files": [remote("http://x", "../up")]}, r"files\[0\].path: '../up' .*A path below the"),
        ({"files": [remote("http://x", "a/../../up")]}, r"files\[0\].path"),
        ({"files": [remote("http://x", "/abs")]}, r"files\[0\].path"),
        ({"files": [remote("http://x", "a\\b")]}, r"files\[0\].path"),
        ({"files": [remote("http://x"), remote("http://y")]}, r"sub-01/file.bin stands there twice"),
        (
            {"files": [remote("http://x", sha256="0" * 64, sha256_prefix="12345678")]},
            r"files\[0\]: sha256 does not begin with sha256_prefix",
        ),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path, change, message):
    path = tmp_path / "licences.yaml"
    path.write_text(yaml.safe_dump({"test_set": entry(**change)}))
    with pytest.raises(CatalogueError, match=message) as caught:
        downloads_catalogue.load_catalogue(path)
    assert str(caught.value).startswith(f"{path.as_posix()} cannot be used:\n  ")


def test_two_entries_that_share_a_folder_may_not_share_a_file(tmp_path):
    path = tmp_path / "licences.yaml"
    one, other = entry(files=[remote("http://x")]), entry(files=[remote("http://y")], folder="one")
    path.write_text(yaml.safe_dump({"one": one, "other": other}))
    with pytest.raises(CatalogueError, match="other.files: sub-01/file.bin is the same .* of one"):
        downloads_catalogue.load_catalogue(path)
    other["files"][0]["path"] = "sub-02/file.bin"
    path.write_text(yaml.safe_dump({"one": one, "other": other}))
    loaded = downloads_catalogue.load_catalogue(path)
    assert loaded["one"].raw_dir == loaded["other"].raw_dir == paths.raw_dir("one")


def test_entries_that_share_a_folder_share_its_ledger(tmp_study, serve):
    server = serve(Server())
    where = tmp_study / "licences.yaml"
    content = {
        name: entry(files=[remote(server.url, f"{name}.bin")], folder="both") for name in "ab"
    }
    where.write_text(yaml.safe_dump(content))
    for name in "ab":
        fetch(name, catalogue=where, progress=False, retry=QUICK)
    noted = json.loads((paths.raw_dir("both") / "downloads.json").read_text())["files"]
    assert {path: about["entry"] for path, about in noted.items()} == {"a.bin": "a", "b.bin": "b"}


def test_all_findings_are_listed_at_once(tmp_path):
    path = tmp_path / "licences.yaml"
    broken = entry(verified=1)
    del broken["citation"]
    path.write_text(yaml.safe_dump({"test_set": broken, "Other Set": entry()}))
    with pytest.raises(CatalogueError) as caught:
        downloads_catalogue.load_catalogue(path)
    for part in ("'citation' is a required", "test_set.verified", "A name is also a folder"):
        assert part in str(caught.value)


def test_a_catalogue_that_is_none(tmp_path):
    path = tmp_path / "licences.yaml"
    with pytest.raises(CatalogueError, match="cannot be read .* Restore it from git"):
        downloads_catalogue.load_catalogue(path)
    for text, message in (
        ("a: [", "is no valid YAML"),
        ("", "the file: None is not of type 'object'"),
        ("test_set: {}\ntest_set: {}", "the key 'test_set' stands there twice"),
    ):
        path.write_text(text)
        with pytest.raises(CatalogueError, match=message):
            downloads_catalogue.load_catalogue(path)


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(CatalogueError, match="Did you mean things_eeg1"):
        downloads_catalogue.find_entry("things_eeg_1")
    with pytest.raises(CatalogueError, match="There is: things_eeg2_raw, "):
        fetch("nothing_like_it")


def test_sizes_as_people_read_them():
    sizes = (None, 0, 999, 1000, 1_480_112, 203_900_000_000)
    assert [downloads_catalogue.readable(size) for size in sizes] == [
        "size unknown", "0 B", "999 B", "1 kB", "1.48 MB", "204 GB",
    ]  # fmt: skip


def test_loaded_entries_can_be_changed_in_memory(tmp_path, serve):
    """A notebook may pass what it loaded instead of a file."""
    server = serve(Server())
    loaded = downloads_catalogue.load_catalogue(catalogue(tmp_path, remote(server.url)))
    (path,) = fetch(
        "test_set", catalogue=copy.copy(loaded), destination=tmp_path / "data", progress=True
    )
    assert path.read_bytes() == CONTENT


# ------------------------------------------------------------------ command line


def test_command_line(tmp_study, serve, monkeypatch, capsys):
    server = serve(Server())
    where = catalogue(
        tmp_study, remote(server.url, "a.bin"), remote(server.url, "b.bin"),
        licence="CC-BY-NC-4.0", accept="required", after=["Look at it."],
    )  # fmt: skip
    loaded = downloads_catalogue.load_catalogue(where)
    monkeypatch.setattr(downloads_fetch, "load_catalogue", lambda: loaded)
    monkeypatch.setattr(downloads_catalogue, "load_catalogue", lambda path=None: loaded)

    assert downloads_fetch.main(["list"]) == 0
    assert re.search(r"test_set +size unknown +CC-BY-NC-4.0\* +2 files +A test", said(capsys))
    assert downloads_fetch.main(["show", "test_set"]) == 0
    assert "--accept CC-BY-NC-4.0" in said(capsys)
    assert downloads_fetch.main(["show", "other"]) == 1
    assert "error: there is no data set 'other'" in capsys.readouterr().err

    assert downloads_fetch.main(["fetch", "test_set"]) == 3
    assert "the licence must be accepted" in capsys.readouterr().err
    accepted = ["fetch", "test_set", "--accept", "CC-BY-NC-4.0"]
    assert downloads_fetch.main([*accepted, "--files", "b.*"]) == 0
    assert said(capsys).endswith("raw/test_set/b.bin\nnext: Look at it.\n")
    assert not (tmp_study / "data" / "raw" / "test_set" / "a.bin").exists()
    server.states = [0, 404]
    assert downloads_fetch.main(accepted) == 1
    assert "answers 404" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        downloads_fetch.main(["fetch"])
    assert stopped.value.code == 2

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads_fetch, "fetch", interrupted)
    assert downloads_fetch.main(accepted) == 130


def said(capsys) -> str:
    return capsys.readouterr().out
