"""Downloads from a real server on this machine, and archives good and bad."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dml import data
from dml.data import archives

CONTENT = bytes(range(256)) * 4000


class Server(BaseHTTPRequestHandler):
    """Sends CONTENT; /resume answers ranges, /plain never does, /broken stops half way."""

    asked = None

    def do_GET(self):
        type(self).asked = self.headers.get("Range")
        start = 0
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.asked and self.path != "/plain":
            start = int(re.match(r"bytes=(\d+)-", self.asked)[1])
            if start >= len(CONTENT):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = len(CONTENT) // 2 if self.path == "/broken" and not start else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("have", [0, 1000, len(CONTENT)])
@pytest.mark.parametrize("kind", ["resume", "plain"])
def test_a_download_goes_on_where_it_stopped(url, tmp_path, have, kind):
    (tmp_path / "a.tgz.partial").write_bytes(CONTENT[:have])
    file = archives.fetch(f"{url}/{kind}", tmp_path / "a.tgz")
    assert file.read_bytes() == CONTENT
    assert Server.asked == (f"bytes={have}-" if have else None)
    assert not (tmp_path / "a.tgz.partial").exists()


def test_what_came_before_the_link_broke_off_is_kept(url, tmp_path):
    with pytest.raises(OSError, match="broke off at 512000 bytes"):
        archives.fetch(f"{url}/broken", tmp_path / "a.tgz")
    assert (tmp_path / "a.tgz.partial").stat().st_size == 512000
    assert archives.fetch(f"{url}/broken", tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_link_that_does_not_answer_is_named(url, tmp_path):
    with pytest.raises(OSError, match="/missing answers 404"):
        archives.fetch(f"{url}/missing", tmp_path / "a.tgz")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1/a.* cannot be reached"):
        archives.fetch("http://127.0.0.1:1/a", tmp_path / "b.tgz")


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_wrong_checksum_is_named_and_the_file_removed(tmp_path, kind):
    file = tmp_path / "a.tgz"
    file.write_bytes(CONTENT)
    archives.check(file, f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}")
    with pytest.raises(ValueError, match=rf"a\.tgz has {kind} .*, not 00ff"):
        archives.check(file, f"{kind}:00ff")
    assert not file.exists()


def pack(file, members):
    """A .zip or .tgz of name -> content."""
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(file, "w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file


@pytest.fixture(params=["a.zip", "a.tgz"])
def archive(request, tmp_path):
    return tmp_path / request.param


def test_an_archive_appears_whole(archive, tmp_path):
    pack(archive, {"birds/a.txt": b"one", "birds/b/c.txt": b"two"})
    archives.unpack(archive, tmp_path / "root", "birds")
    assert (tmp_path / "root" / "birds" / "b" / "c.txt").read_bytes() == b"two"
    assert [f.name for f in (tmp_path / "root").iterdir()] == ["birds"]


@pytest.mark.parametrize("member", ["../evil.txt", "birds/../../evil.txt", "a/../../../b/evil.txt"])
def test_a_member_outside_is_refused_and_nothing_kept(archive, tmp_path, member):
    pack(archive, {"birds/a.txt": b"one", member: b"evil"})
    with pytest.raises(ValueError, match="would land outside"):
        archives.unpack(archive, tmp_path / "root", "birds")
    assert not list((tmp_path / "root").iterdir()) and not list(tmp_path.rglob("evil*"))


def test_a_link_that_leads_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        link = tarfile.TarInfo("birds/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../etc"
        archive.addfile(link)
    with pytest.raises(ValueError, match="would land outside"):
        archives.unpack(tmp_path / "a.tgz", tmp_path / "root", "birds")


def test_an_archive_that_is_cut_short_leaves_nothing(tmp_path):
    file = pack(tmp_path / "a.tgz", {"birds/a.bin": CONTENT, "birds/b.bin": CONTENT[::-1]})
    file.write_bytes(file.read_bytes()[:-600])
    with pytest.raises(ValueError, match=r"a\.tgz is no archive that can be unpacked"):
        archives.unpack(file, tmp_path / "root", "birds")
    assert not list((tmp_path / "root").iterdir())


def test_an_archive_of_something_else_is_named(archive, tmp_path):
    pack(archive, {"cars/a.txt": b"one"})
    with pytest.raises(ValueError, match="has no birds in it"):
        archives.unpack(archive, tmp_path / "root", "birds")


def test_a_disk_too_small_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match=r"GB free, 1000000000\.00 GB are needed"):
        archives.need_space(tmp_path, 10**18)


def test_sets_that_no_link_leads_to_say_what_to_do(tmp_path):
    for name in ("cars", "inshop"):
        with pytest.raises(ValueError, match=f"no link leads to {name}. To get {name}: .*img|car"):
            data.download(name, tmp_path)
    with pytest.raises(ValueError, match="no link leads to digits"):
        data.download("digits", tmp_path)
