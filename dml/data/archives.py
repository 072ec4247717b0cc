"""Fetch a data set: resumed where it stopped, checked, unpacked whole or not at all."""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    Attributes:
        url: where it is.
        checksum: "md5:..." of the file.
        into: the folder, below the root, in which it is unpacked.
        makes: what is there once it is.
    """

    url: str
    checksum: str
    into: str
    makes: str


ARCHIVES = {
    "cub": Archive(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
        "md5:97eceeb196236b17998738112f37df78",
        ".",
        "CUB_200_2011",
    ),
    "sop": Archive(
        "http://ftp.cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip",
        "md5:7f73d41a2f44250d4779881525aea32e",
        ".",
        "Stanford_Online_Products",
    ),
    "flowers17": Archive(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/17flowers.tgz",
        "md5:b59a65d8d1a99cd66944d474e1289eab",
        "flowers17",
        "jpg",
    ),
}
# no link leads to these without a browser: what to do instead, {root} filled in
BY_HAND = {
    "cars": "the source's own links are dead. From a mirror, put car_ims/ (car_ims.tgz, md5 "
    "d5c8f0aa497503f355e17dc7886c3f14) and cars_annos.mat (md5 b407c6086d669747186bd1d764ff9dbc) "
    "into {root}/cars196; or cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat",
    "inshop": "from the project page of DeepFashion, In-shop Clothes Retrieval Benchmark, unpack "
    "Img/img.zip into {root}/Inshop_Clothes/Img (not img_highres.zip, which has other pixels), and "
    "put Eval/list_eval_partition.txt into {root}/Inshop_Clothes/Eval",
}
BY_TORCHVISION = ("cifar10", "cifar100", "mnist", "fashion_mnist")


def how_to_get(name: str, root: Path) -> str:
    """What a user does to have a data set below `root`; empty where there is nothing to do."""
    if name in BY_HAND:
        return f"To get {name}: {BY_HAND[name].format(root=root)}."
    if name in ARCHIVES:
        archive = ARCHIVES[name]
        return (
            f"To get {name}: dml.data.download({name!r}, {str(root)!r}), or unpack {archive.url} "
            f"({archive.checksum}) into {root / archive.into}."
        )
    if name == "emoji":
        return f"To get emoji: dml.data.download('emoji', {str(root)!r}); it needs npm."
    if name in BY_TORCHVISION:
        return f"To get {name}: dml.data.load({name!r}, {str(root)!r}, download=True)."
    return ""


def download(name: str, root: Path) -> None:
    """Fetch a data set's archive and unpack it below `root`, if it is not there.

    Raises:
        ValueError: a data set that no link leads to, with what to do; a wrong checksum; an archive
            with a member outside its folder.
        OSError: too little space, with how much; or the link does not answer.
    """
    if name not in ARCHIVES:
        raise ValueError(f"no link leads to {name}. {how_to_get(name, root)}".rstrip())
    archive = ARCHIVES[name]
    into = root / archive.into
    if not (into / archive.makes).exists():
        file = fetch(archive.url, root / "downloads" / archive.url.rsplit("/", 1)[1])
        check(file, archive.checksum)
        unpack(file, into, archive.makes)


def fetch(url: str, file: Path) -> Path:
    """Download into `file`, going on where an earlier try stopped.

    What has come is in `file` with .partial behind its name until all of it has.

    Raises:
        OSError: the link does not answer or breaks off (what has come stays), or too little space.
    """
    if file.is_file():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    here = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={here}-"} if here else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.status != 206:  # a server that cannot resume sends all of it
                here = 0
            length = int(answer.headers.get("Content-Length", 0))
            need_space(file.parent, length)
            bar = tqdm(total=here + length, initial=here, unit="B", unit_scale=True, desc=file.name)
            with partial.open("ab" if here else "wb") as out, bar:
                while chunk := answer.read(CHUNK):
                    out.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # asked for what is behind the end: all of it is here
            raise OSError(f"{url} answers {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise OSError(f"{url} cannot be reached: {error.reason}") from None
    else:
        if length and partial.stat().st_size < here + length:
            raise OSError(f"{url} broke off at {partial.stat().st_size} bytes: load again to go on")
    partial.rename(file)
    return file


def check(file: Path, checksum: str) -> None:
    """Compare a file with its published checksum, "md5:..." or "sha256:...".

    Raises:
        ValueError: they differ; the file is removed, so that the next try fetches it anew.
    """
    kind, _, expected = checksum.partition(":")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, kind).hexdigest()
    if found != expected:
        file.unlink()
        raise ValueError(f"{file} has {kind} {found}, not {expected}: removed, fetch it again")


def unpack(file: Path, into: Path, makes: str) -> None:
    """Unpack a .tgz, .tar or .zip so that `into`/`makes` appears whole or not at all.

    Raises:
        ValueError: a member that would land outside, or no `makes` in it; nothing is kept.
        OSError: too little space.
    """
    staging = into / f".{file.name}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(file):
            _unzip(file, staging)
        else:
            _untar(file, staging)
        if not (staging / makes).exists():
            raise ValueError(f"{file} has no {makes} in it")
        (staging / makes).rename(into / makes)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _unzip(file: Path, into: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member.replace("\\", "/"))
            drive = any(":" in part for part in path.parts[:1])
            if path.is_absolute() or ".." in path.parts or drive:
                raise ValueError(f"{file}: {member} would land outside {into.parent}")
        need_space(into, sum(member.file_size for member in archive.infolist()))
        archive.extractall(into)


def _untar(file: Path, into: Path) -> None:
    try:
        with tarfile.open(file) as archive:
            need_space(into, sum(member.size for member in archive))
            archive.extractall(into, filter="data")
    except tarfile.FilterError as error:
        raise ValueError(f"{file}: a member would land outside {into.parent}: {error}") from None
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{file} is no archive that can be unpacked: {error}") from None


def need_space(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        OSError: fewer than `size` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"{folder} has {free / 1e9:.2f} GB free, {size / 1e9:.2f} GB are needed")
