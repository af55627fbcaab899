"""Hostile collections for `--input`: tars, tables and folders with one defect each, and what each
must come to.

Several defects share a collection where that is possible: a folder of tars, a table of names. All
content is generated here, from one seed.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BLOCK: Final = 512
END: Final = bytes(2 * BLOCK)
GIB: Final = 2**30
LONG: Final = "".join(f"{n:03}" for n in range(82))
"""The longest name that leaves room for its caption's name; without repetition."""
DEEP: Final = b"[" * 100_000 + b"]" * 100_000
PROMPT: Final = "Describe it.{% if row.title %} It is called {{ row.title }}.{% endif %}"


@dataclass(frozen=True)
class Case:
    """One collection, and what a run over it comes to: ``captioned`` items, the kinds of those that
    ``failed``, the kinds of documents that are ``skipped``; or it is ``refused`` with a sentence
    that has these words. ``again``: rows that name what another row named. ``defects``: how many
    hostile inputs it holds."""

    name: str
    path: Path
    captioned: int = 0
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    refused: str = ""
    again: int = 0
    flags: tuple[str, ...] = ()
    defects: int = 1

    @property
    def records(self) -> int:
        """The number of records in an export."""
        return self.captioned + len(self.failed) + len(self.skipped) + self.again

    @property
    def exit_code(self) -> int:
        """The exit code of a run."""
        return 2 if self.refused else 1 if self.failed else 0


def make_collections(folder: Path) -> Iterator[Case]:
    """All collections, each in a separate folder."""
    makers = (tars, csv_tables, json_tables, names_in_tables, parquet_tables, images_in_parquet)
    for make in (*makers, image_folders, other_paths):
        below = folder / make.__name__
        below.mkdir(parents=True)
        yield from make(below)


def png(number: int) -> bytes:
    """An image with a unique colour."""
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 37 % 256, number * 91 % 256, number % 256)).save(held, "PNG")
    return held.getvalue()


def _with_images(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names or ("a.png", "b.png", "c.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


# --- tars ----------------------------------------------------------------------------------------

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: Any) -> Member:
    """One member of a tar."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def tar(*members: Member, end: bytes = END, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar with these members."""
    encoding = "latin-1" if form == tarfile.USTAR_FORMAT else "utf-8"
    parts = []
    for info, content in members:
        padding = bytes(-len(content) % BLOCK)
        parts.append(info.tobuf(form, encoding, "surrogateescape") + content + padding)
    return b"".join(parts) + end


def _signed(header: bytearray) -> bytes:
    """A header with a valid checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:BLOCK])
    return bytes(header)


def _with_size(info: tarfile.TarInfo, size: bytes) -> bytes:
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    return _signed(header)


def _huge(size: int) -> bytes:
    return b"\x80" + size.to_bytes(11, "big")


def _pax(records: bytes, then: Member) -> bytes:
    """A member preceded by a pax header with these records."""
    info, _ = member("pax", records, tarfile.XHDTYPE)
    info.size = len(records)
    head = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % BLOCK)
    return head + tar(then, end=b"", form=tarfile.USTAR_FORMAT)


def _record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    size = len(body) + 1
    size = len(body) + len(str(size))
    size = len(body) + len(str(size))
    return str(size).encode() + body


Tar = tuple[bytes, int, tuple[str, ...]]
"""Its bytes, captions, and kinds of failure."""


def _sound_tars() -> Iterator[Tar]:
    """Unusual tars from which everything is captioned."""
    image = member("0.png", png(0))
    yield tar(member("./0.png", png(1)), member(".//a/./1.png", png(2))), 2, ()
    yield (
        tar(member("/".join(map(str, range(60))) + "/0.png", png(3)), form=tarfile.GNU_FORMAT),
        1,
        (),
    )
    yield tar(member("ä" + LONG[:99] + "/0.png", png(4))), 1, ()
    yield tar(member(unicodedata.normalize("NFD", "é.png"), png(5)), member("é.png", png(6))), 2, ()
    yield (
        tar(member("a\nb.png", png(7)), member("%20.png", png(8)), member("\\.png", png(9))),
        3,
        (),
    )
    yield tar(member(" 0.png", png(1)), member("😀.PNG", png(2))), 2, ()
    yield (
        tar(image, member("dir.png", kind=tarfile.DIRTYPE), member("dir.png/x.png", png(3))),
        2,
        (),
    )
    yield tar(image, member("other.png", kind=tarfile.LNKTYPE, linkname="0.png")), 2, ()
    yield tar(image, member("._0.png", b"mac"), member("a/.b.png", b"")), 1, ()
    yield tar(image, member("0.json", DEEP), member("0.txt", b"\xff")), 1, ()
    yield tar(image, end=bytes(20 * BLOCK)), 1, ()
    yield tar(member("g", _record("comment", b"x"), tarfile.XGLTYPE), image), 1, ()
    yield tar(image, member("a.tar/b.tar/1.png", png(2))), 2, ()
    yield tar(*(member(f"{n}.{part}.png", png(n)) for n in range(3) for part in "ab")), 6, ()


def _failing_tars() -> Iterator[Tar]:
    """Complete tars with one member that fails."""
    image = member("0.png", png(0))
    for name in ("/x.png", "../x.png", "a/../../x.png", "/etc/../x.png", "a/../b.png"):
        yield tar(image, member(name, png(1))), 1, ("path_escape",)
    for kind in (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"):
        yield tar(image, member("x.png", kind=kind, linkname="0.png")), 1, ("not_a_file",)
    yield tar(image, member("x.png", kind=tarfile.LNKTYPE, linkname="gone")), 1, ("not_a_file",)
    yield tar(image, member("x.png", kind=tarfile.LNKTYPE, linkname="x.png")), 1, ("not_a_file",)
    yield tar(image, member("é.png", png(1)), form=tarfile.USTAR_FORMAT), 1, ("bad_name",)
    yield tar(image, member("x" * 260 + ".png", png(1))), 1, ("bad_name",)
    yield tar(image, member(f"{LONG}{LONG}/x.png", png(1))), 1, ("bad_name",)
    for content in (b"", b"text", png(1)[:20], b"<svg ", b"\x89PNG\r\n\x1a\n"):
        kind = "decode_error" if content[:4] == b"\x89PNG" else "not_an_image"
        yield tar(image, member("x.png", content)), 1, (kind,)
    sparse = bytearray(member("x.png", png(1))[0].tobuf(tarfile.GNU_FORMAT))
    sparse[156:157] = tarfile.GNUTYPE_SPARSE
    sparse[386:410] = b"%011o\0" % 0 + b"%011o\0" % len(png(1))
    sparse[483:495] = b"%011o\0" % (2 * len(png(1)))
    body = png(1) + bytes(-len(png(1)) % BLOCK)
    yield tar(image, end=_signed(sparse) + body + END), 1, ("not_a_file",)
    nul = _pax(_record("path", b"a\0b.png"), member("x.png", png(1)))
    yield tar(image, end=nul + END), 1, ("bad_name",)


def _damaged_tars() -> Iterator[Tar]:
    """Truncated tars, each with an entry for what is missing."""
    image = member("0.png", png(0))
    ends = ("bad_name",)
    random_ = random.Random(17)
    members = [member(f"{n}.png", png(n)) for n in range(3)]
    whole = tar(*members)
    step = BLOCK + -(-len(png(0)) // BLOCK) * BLOCK
    cuts = {BLOCK, BLOCK + 10, step - 1, step, step + 1, step + BLOCK, 2 * step - 3, 3 * step}
    cuts |= {random_.randrange(BLOCK, 3 * step) for _ in range(30)}
    for cut in sorted(cuts):
        sizes = [len(content) for _, content in members]
        num_whole = sum(cut >= n * step + BLOCK + size for n, size in enumerate(sizes))
        has_half = cut % step >= BLOCK and num_whole == cut // step
        yield whole[:cut], num_whole, ("decode_error",) * has_half + ends
    for place in range(1, 3):
        for byte in (0, 100, 124, 148, 156, 257, 400):  # name, mode, size, checksum, type, magic
            damaged = bytearray(whole)
            damaged[place * step + byte] ^= 0x55
            yield bytes(damaged), place, ends
    yield whole[: 3 * step] + tar(image)[: BLOCK // 2], 3, ends
    yield whole + tar(member("z.png", png(9))), 3, ends
    for size in (_huge(10 * GIB), _huge(2**62), _huge(2**80), b"77777777777\0"):
        claim = _with_size(member("x.png")[0], size)
        yield tar(image, end=claim + END), 1, ("too_large", *ends)
    yield tar(image, end=_with_size(member("x.png")[0], b"\xff" * 10 + b"\xfc\x00") + END), 1, ends
    for key, value in (
        *(("GNU.sparse.size", b"x"), ("GNU.sparse.map", b"1,x"), ("GNU.sparse.realsize", b"")),
        *(("size", b"99999999999999999999999"),),
    ):
        kinds = ("too_large", *ends) if key == "size" else ends
        behind = _pax(_record(key, value), member("x.png", png(1)))
        yield tar(image, end=behind + END), 1, kinds
    for records in (b"xx path=a\n", b"99999999 path=a\n", b"5 a\n", b"-3 path=a.png\n"):
        behind = _pax(records, member("x.png", png(1)))
        yield tar(image, end=behind + END), *_of_pax(behind, ends)
    long_name = _with_size(member("n", kind=tarfile.GNUTYPE_LONGNAME)[0], _huge(2**70))
    yield tar(image, end=long_name + END), 1, ends


def _of_pax(behind: bytes, ends: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """Python versions differ in which damaged pax records they skip."""
    try:
        with tarfile.open(fileobj=io.BytesIO(behind + END)) as opened:
            return 1 + sum(found.name.endswith(".png") for found in opened), ()
    except (tarfile.TarError, ValueError):
        return 1, ends


def tars(folder: Path) -> Iterator[Case]:
    """Tars and folders of them."""
    for make in (_sound_tars, _failing_tars, _damaged_tars):
        below = folder / make.__name__
        below.mkdir()
        captioned, failed, number = 0, list[str](), 0
        for number, (content, captions, kinds) in enumerate(make(), start=1):
            (below / f"{number:03}.tar").write_bytes(content)
            captioned += captions
            failed += kinds
        yield Case(make.__name__, below, captioned, tuple(failed), defects=number)
    image = member("0.png", png(0))
    for name, content, said in (
        ("empty", b"", "cannot be read as a tar"),
        ("zeros", END, "no member is named like an image"),
        ("one_zero_block", bytes(BLOCK), "no member is named like an image"),
        ("text", b"these are no headers\n" * 100, "cannot be read as a tar"),
        ("gzip", gzip.compress(tar(image)), "unpack a compressed one"),
        ("half_a_header", tar(image)[:300], "cannot be read as a tar"),
        ("damaged_first_header", b"x" + tar(image)[1:], "cannot be read as a tar"),
        ("no_image", tar(member("0.json", b"{}")), "no member is named like an image"),
    ):
        path = folder / f"{name}.tar"
        path.write_bytes(content)
        yield Case(f"tar {name}", path, refused=said)
    upper = folder / "upper.TAR"
    upper.write_bytes(tar(image, member("0.png", png(1))))
    yield Case("tar with a member twice", upper, 1, again=1)
    yield Case(
        "tar and a column of images",
        upper,
        refused="applies to a table",
        flags=("--type-column=a",),
    )
    large = folder / "large.tar"
    with large.open("wb") as opened:
        opened.write(tar(image, end=_with_size(member("big.png")[0], _huge(10 * GIB))))
        opened.seek(10 * GIB, os.SEEK_CUR)
        opened.write(END)
    yield Case("tar with 10 GB", large, 1, ("too_large",))
    yield from _sidecars(folder / "sidecars")


def _sidecars(folder: Path) -> Iterator[Case]:
    folder.mkdir()
    prompt = folder / "prompt.md"
    prompt.write_text(PROMPT)
    flags = (f"--prompt={prompt}", "--id-column=id")
    good = member("g.png", png(1)), member("g.json", b'{"title": "g", "id": 1}')
    sidecars: list[tuple[str, bytes, bool]] = [
        *(("0.json", content, False) for content in (b"[1]", b"{}", b'"x"', b'{"title": null}')),
        *(
            ("0.json", content, False)
            for content in (b'{"id":1,"id":2}', b'{"id": ' + b"9" * 90 + b"}")
        ),
        *(("0.json", content, True) for content in (b"", b"{", b'{"title": "\xff"}', DEEP, b"NaN")),
        ("0.json", b'{"title": "' + b"x" * 2**20 + b'"}', True),
        ("0.JSON", b"{", True),
        ("0.txt", b"", False),
        ("0.txt", b"\xef\xbb\xbfx", False),
        ("0.txt", b"caf\xe9", True),
        ("0.txt", b"x" * (2**20 + 1), True),
        ("0.cls", b"\xff", False),
    ]
    for number, (name, content, _) in enumerate(sidecars):
        held = tar(*good, member("0.png", png(number)), member(name, content))
        (folder / f"{number:02}.tar").write_bytes(held)
    bad = sum(is_bad for *_, is_bad in sidecars)
    count = len(sidecars)
    case = Case(
        "sidecars", folder, 2 * count - bad, ("engine_error",) * bad, flags=flags, defects=count
    )
    yield case
    yield replace(case, name="sidecars unread", captioned=2 * count, failed=(), flags=())
    prompt = folder / "typo.md"
    prompt.write_text("{{ row.titel }} of it")
    yield replace(
        case, name="column typo", refused="did you mean title?", flags=(f"--prompt={prompt}",)
    )


# --- CSV and TSV ---------------------------------------------------------------------------------


def csv_tables(folder: Path) -> Iterator[Case]:
    """CSV and TSV files."""
    bad = "bad_name"
    ok: list[tuple[str, int]] = [
        ("image\r\na.png\r\nb.png", 2),
        ("\ufeffimage\na.png\n", 1),
        ("image\ra.png\rb.png\r", 2),
        ("\n\nimage,title\n\na.png,x\n\n", 1),
        (" image , title \na.png,x\n", 1),
        (",image,\n0,a.png,x\n1,b.png,\n", 2),
        ("image,title,,,\na.png,x,,,\n", 1),
        ("image,title,size\na.png\nb.png,x\n", 2),
        ("image\na.png,,,\n", 1),
        ('image,title\na.png,"x\n\ny"\n"b.png","say ""hi"""\n', 2),
        ('image,title\na.png,5" pipe\n', 1),
        ('image,title\na.png,"x"y\n', 1),
        ("image,caption,file,item_id,error,input_caption\na.png,x,y,z,e,c\n", 1),
        ("image,title\na.png,=cmd|' /C calc'!A0\n", 1),
        ("image,title\na.png,\u2028\x85\n", 1),
        ("image," + ",".join(f"c{n}" for n in range(2000)) + "\na.png\n", 1),
        ("image," + "x" * 5000 + "\na.png,y\n", 1),
    ]
    for number, (text, captioned) in enumerate(ok):
        path = _with_images(folder / f"ok{number}") / "t.csv"
        path.write_bytes(text.encode())
        yield Case(f"csv ok {number}", path, captioned)
    failing: list[tuple[bytes, int, int]] = [
        (b"image,title\na.png,x\nb.png,y,z\nc.png,w\n", 2, 1),
        (b"image,title\na.png,caf\xe9\nb.png,x\n", 1, 1),
        (b"image\na.png\n\xe9.png\n", 1, 1),
        (b"image\na.png\nb\0.png\n", 1, 1),
        (b'image,title\na.png,x\nb.png,"never\nc.png,closed\n', 1, 1),
        (b'image,title\na.png,x\n"b.png', 1, 1),
        (b"image,title\na.png,x\n,y\n ,z\n", 1, 2),
        (b"image,title\na.png," + b"x" * (2**20 + 1) + b"\nb.png,y\n", 1, 1),
        (b"image,title\na.png," + b"x" * (17 * 2**20) + b"\nb.png,y\n", 1, 1),
        (b'image,title\na.png,"' + b"line\n" * 300_000, 0, 0),
    ]
    for number, (content, captioned, num_bad) in enumerate(failing[:-1]):
        path = _with_images(folder / f"failing{number}") / "t.csv"
        path.write_bytes(content)
        yield Case(f"csv failing {number}", path, captioned, (bad,) * num_bad)
    refused: list[tuple[str, bytes, str]] = [
        ("t.csv", "image\na.png\n".encode("utf-16"), "UTF-16"),
        ("t.csv", "image\na.png\n".encode("utf-16-be"), "UTF-16"),
        ("t.csv", "image\na.png\n".encode("utf-32"), "UTF-16"),
        ("t.csv", b"image,caf\xe9\na.png,x\n", "it is not UTF-8 (byte 9)"),
        ("t.csv", b"image,image\na.png,b.png\n", "two columns image"),
        ("t.csv", b"image,title,title\na.png,x,y\n", "two columns title"),
        ("t.csv", b"image;title\na.png;x\n", "separated by semicolons"),
        ("t.tsv", b"image,title\na.png,x\n", "separated by commas"),
        ("t.csv", b"image\ttitle\na.png\tx\n", "separated by tabs"),
        ("t.csv", b"", "has no column image"),
        ("t.csv", b"\n\n\n", "has no column image"),
        ("t.csv", b"image\n", "has no rows"),
        ("t.csv", b"image\n\n\n", "has no rows"),
        ("t.csv", b"title,size\nx,y\n", "with --image-column; it has title, size"),
        ("t.csv", b"image\nx.png\ny.png\n", "none of the first images is there"),
        ("t.csv", b"x" * (2**20 + 1), "field larger than field limit"),
        ("t.csv", b"x" * (2**24 + 1), "a line has more than 16 MiB"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0", "it is not UTF-8 (byte 0)"),
    ]
    for number, (name, content, said) in enumerate(refused):
        path = _with_images(folder / f"refused{number}") / name
        path.write_bytes(content)
        yield Case(f"csv refused {number}", path, refused=said)


# --- JSON lines ----------------------------------------------------------------------------------


def json_tables(folder: Path) -> Iterator[Case]:
    """JSON lines."""
    good = b'{"image": "a.png", "title": "x"}\n'
    rows: list[tuple[bytes, bool]] = [
        *((b'{"image": "b.png", "n": %b}' % value, True) for value in (b"NaN", b"-Infinity")),
        (b'{"image": "b.png", "n": ' + b"9" * 4000 + b"}", True),
        (b'{"image": "b.png", "n": ' + b"9" * 5000 + b"}", False),
        (b'{"image": "b.png", "n": 1e400}', False),
        (b'{"image": "b.png", "n": ' + b"[" * 200 + b"]" * 200 + b"}", True),
        (b'{"image": "b.png", "n": ' + DEEP + b"}", False),
        (b'{"image": "x.png", "image": "b.png"}', True),
        (b'{"image": "b.png"}\r', True),
        (b' \t{"image": "b.png"} ', True),
        (b'{"image": "b.png", "title": "\\ud83d\\ude00 \\u0000"}', True),
        (b'{"image": "b.png", "title": "\\ud800"}', False),
        (b'{"image": "b.png", "": {"": []}}', True),
        *((line, False) for line in (b"{", b"[1]", b"3", b'"x"', b"null", b"{}", b"\0", b"x")),
        *(
            (line, False)
            for line in (b'{"image": "b.png"} {"image": "c.png"}', b"{'image': 'b.png'}")
        ),
        *(
            (b'{"image": %b}' % value, False)
            for value in (b"3", b"null", b"[]", b'["b.png"]', b"{}")
        ),
        *((b'{"image": %b}' % value, False) for value in (b"true", b'""', b'" "', b'"\\u0000"')),
        (b'{"image": "b.png"', False),
        (b'\xff\xfe{"image": "b.png"}', False),
        (b'{"image": "\xe9.png"}', False),
        (b'{"image": "b.png", "x": "' + b"x" * (17 * 2**20) + b'"}', False),
    ]
    below = _with_images(folder / "rows")
    for number, (line, is_good) in enumerate(rows):
        (below / f"{number}.png").write_bytes(png(number))
        line = line.replace(b"b.png", b"%d.png" % number)
        rows[number] = line, is_good
    path = below / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\n\n" + b"\n".join(line for line, _ in rows))
    captioned = 1 + sum(is_good for _, is_good in rows)
    failed = ("bad_name",) * sum(not is_good for _, is_good in rows)
    yield Case("jsonl rows", path, captioned, failed, defects=len(rows))
    refused: list[tuple[str, bytes, str]] = [
        ("t.jsonl", b"", "has no column image"),
        ("t.jsonl", b"\n\n", "has no column image"),
        ("t.jsonl", b"{}\n{}\n", "has no column image"),
        ("t.jsonl", b'[{"image": "a.png"}]', "line 1 is a list, not an object"),
        ("t.jsonl", b'[\n{"image": "a.png"},\n', "write one object on each line"),
        ("t.jsonl", b"image\na.png\n", "line 1 is not JSON"),
        ("t.jsonl", good.decode().encode("utf-16"), "line 1 is not JSON"),
        ("t.jsonl", gzip.compress(good), "line 1 is not JSON"),
        ("t.jsonl", b'{"picture": "a.png"}\n', "with --image-column; it has picture"),
        ("t.json", good, "write one object on each line"),
        ("t.jsonl.gz", gzip.compress(good), "unpack it first"),
        ("t.txt", good, "neither a folder nor a .jsonl"),
        ("t.PNG", png(0), "the folder that it is in"),
    ]
    for number, (name, content, said) in enumerate(refused):
        path = _with_images(folder / f"refused{number}") / name
        path.write_bytes(content)
        yield Case(f"jsonl refused {number}", path, refused=said)
    path = _with_images(folder / "many") / "t.jsonl"
    path.write_bytes(good * 3 + b'{"image": "./a.png"}\n{"image": "b.png", "late": 1}')
    yield Case("rows of one file", path, 2, again=3)


def names_in_tables(folder: Path) -> Iterator[Case]:
    """File names, one per row."""
    root = _with_images(folder / "root")
    outside = _with_images(folder / "outside")
    (root / "out.png").symlink_to(outside / "a.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "in.png").symlink_to("b.png")
    (root / "folder.png").mkdir()
    (root / "outer").symlink_to(outside)
    os.mkfifo(root / "pipe.png")
    odd = ("%20.png", "a b.png", "\\.png", "x\ny.png", "😀.png", "é.png", "~.png", "$HOME.png")
    odd += (unicodedata.normalize("NFD", "é.png"), LONG + ".png", "-.png", "'.png", '".png')
    for number, name in enumerate(odd, start=10):
        (root / name).write_bytes(png(number))
    (root / "tar.tar").write_bytes(tar(member("x.png", png(40))))
    good = [
        "./a.png",
        ".//./b.png",
        f"{root}/c.png",
        f"{root}//d/../c.png",
        "in.png",
        " \tsp.png\n",
    ]
    (root / "sp.png").write_bytes(png(50))
    refused = {
        "path_escape": (
            *("../outside/a.png", "/etc/passwd", "d/../../x", "http://x.org/a.png", "a//b.png"),
            *(
                "file:///a.png",
                "s3://b/a.png",
                "out.png",
                "outer/a.png",
            ),
            *(f"{outside}/a.png", "a/./b.png", "..", ".", f"{root}"),
        ),
        "missing_file": (
            *(
                "data:image/png;base64,AAAA",
                "x.png",
                "A.PNG",
                "%61.png",
                "d\\a.png",
                "C:\\a.png",
                "a.png/x.png",
                "gone.png",
            ),
            *("tar.tar/y.png", "tar.tar/x.png/z.png", "~root/a.png", "*.png", "b" * 200 + "/x.png"),
        ),
        "bad_name": ("c" * 255, "d" * 300 + "/x.png", "e/" * 2100 + "x.png"),
        "not_a_file": ("folder.png", "pipe.png", "a/"),
        "unreadable": ("loop.png",),
        "output_conflict": ("logs/a.log/x.png", "manifest.parquet/a.png"),
    }
    escape = f"{root}//d/../c.png"
    good.remove(escape)
    rows = [
        *good,
        *odd,
        "tar.tar/x.png",
        escape,
        *(name for names in refused.values() for name in names),
    ]
    path = root / "t.jsonl"
    path.write_text("".join(json.dumps({"file": name}) + "\n" for name in rows))
    failed = [kind for kind, names in refused.items() for _ in names] + ["path_escape"]
    yield Case("names", path, len(good) + len(odd) + 1, tuple(failed), defects=len(rows))


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, **options)
    return path


def _invalid_text(*texts: bytes) -> pa.Array:
    """A column of strings, some of which are not UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


def parquet_tables(folder: Path) -> Iterator[Case]:
    """Tables with names of images."""
    names = pa.array(["a.png", "b.png", "c.png"])
    columns: list[pa.Array] = [
        *(names.cast(kind) for kind in (pa.large_string(), pa.string_view())),
        names.dictionary_encode(),
        pa.StructArray.from_arrays([names], ["path"]),
    ]
    for number, column in enumerate(columns):
        path = _with_images(folder / f"names{number}") / "t.parquet"
        yield Case(f"names as {column.type}", _parquet(path, {"image": column}), 3)
    for number, column in enumerate(
        (
            *(pa.array([1, 2, 3]), pa.array([1.5, None, 2]), pa.array([True, False, None])),
            *(pa.array([["a.png"], [], None]), pa.array([{"x": 1}, None, {"x": 2}])),
            *(pa.array([[date(2020, 1, 1)], [], None]), pa.nulls(3)),
            pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int8())),
        )
    ):
        path = _parquet(folder / f"noname{number}" / "t.parquet", {"image": column})
        yield Case(f"image as {column.type}", path, 0, ("bad_name",) * 3)
    ids: tuple[pa.Array, ...] = (
        *(pa.array([1, 1, None]), pa.array([2**63, 0, 1], pa.uint64()), pa.array([1.5, None, 0])),
        *(pa.array(["x", "x", ""]), pa.array([b"\xff", b"", None]), pa.array([True, None, False])),
        *(pa.array([Decimal("1.10")] * 3), pa.array([10**18 + 1] * 3, pa.timestamp("ns"))),
        *(pa.array([2**31 - 1] * 3, pa.date32()), pa.array([2**62] * 3, pa.timestamp("us", "UTC"))),
        *(pa.array([2**62] * 3, pa.duration("s")), pa.array([{"a": [1]}, None, {"a": []}])),
        *(pa.array([["x"], [], None]), pa.nulls(3), pa.array(["x" * 5000, "\n", "\x1b[2J"])),
        pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int8())),
    )
    for number, column in enumerate(ids):
        path = _with_images(folder / f"ids{number}") / "t.parquet"
        _parquet(path, {"image": names, "id": column})
        yield Case(f"id as {column.type}", path, 3, flags=("--id-column=id",))
    path = _with_images(folder / "invalid") / "t.parquet"
    title = _invalid_text(b"x", b"\xff\xfe", b"y")
    case = Case("text that is not UTF-8", _parquet(path, {"image": names, "title": title}), 3)
    yield case
    prompt = path.with_name("prompt.md")
    prompt.write_text(PROMPT)
    flags = (f"--prompt={prompt}",)
    yield replace(case, captioned=2, failed=("engine_error",), flags=flags)
    path = folder / "invalid_name" / "t.parquet"
    _with_images(path.parent)
    _parquet(path, {"image": _invalid_text(b"a.png", b"\xff.png", b"c.png")})
    yield Case("name that is not UTF-8", path, 2, ("bad_name",))
    yield from _damaged_parquet(folder / "damaged", names)
    refused: list[tuple[str, Any, str]] = [
        ("empty", {"image": pa.array([], pa.string())}, "has no rows"),
        ("no_column", {"title": names}, "with --image-column; it has title"),
        ("nothing", {}, "has no column image"),
        ("twice", pa.table([names, names], ["image", "image"]), "two columns image"),
        ("twice_other", pa.table([names] * 3, ["image", "x", "x"]), "two columns x"),
    ]
    for name, table, said in refused:
        path = _with_images(folder / name) / "t.parquet"
        yield Case(f"parquet {name}", _parquet(path, table), refused=said)
    parts = _with_images(folder / "parts" / "in", "images/a.png").parent / "in"
    _parquet(parts / "a.parquet", {"image": ["images/a.png"]})
    _parquet(parts / "b.parquet", {"image": pa.array([], pa.string())})
    yield Case("folder of parts", parts, 1)
    other = _with_images(folder / "parts2" / "in", "images/a.png").parent / "in"
    _parquet(other / "a.parquet", {"image": ["images/a.png"]})
    _parquet(other / "b.parquet", {"title": ["x"]})
    yield Case("parts that differ", other, refused="b.parquet: has no column image")


def _damaged_parquet(folder: Path, names: pa.Array) -> Iterator[Case]:
    random_ = random.Random(18)
    many = [f"{n}.png" for n in range(6000)]
    whole = _parquet(folder / "whole.parquet", {"image": names}).read_bytes()
    said = "cannot be read as a table"
    cuts = sorted(
        {0, 1, 4, 8, len(whole) - 1, len(whole) - 8, *random_.sample(range(len(whole)), 12)}
    )
    damaged = [whole[:cut] for cut in cuts] + [whole + b"x", b"PAR1" * 3]
    damaged += [b"x" + whole[1:-4] + b"PARE", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:]]
    for number, content in enumerate(damaged):
        path = _with_images(folder / f"cut{number}") / "t.parquet"
        path.write_bytes(content)
        yield Case(f"damaged parquet {number}", path, refused=said)
    for number, codec in enumerate(("gzip", "zstd", "none")):
        path = _with_images(folder / f"page{number}", *many[:10]) / "t.parquet"
        options = {"row_group_size": 10, "use_dictionary": False, "compression": codec}
        _parquet(path, {"image": many[:30]}, **options)
        group = pq.read_metadata(path).row_group(1).column(0)
        with path.open("r+b") as opened:
            opened.seek(group.data_page_offset)
            opened.write(b"\xff" * group.total_compressed_size)
        yield Case(f"damaged page in {codec}", path, 10, ("bad_name",))


def images_in_parquet(folder: Path) -> Iterator[Case]:
    """Tables that contain their images."""
    images = [png(n) for n in range(3)]
    struct_ = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    same = pa.array([images[0]] * 3, pa.binary(len(images[0])))
    columns: list[tuple[pa.Array, int, tuple[str, ...]]] = [
        *((pa.array(images, kind), 3, ()) for kind in (pa.large_binary(), pa.binary_view())),
        (pa.array(images).dictionary_encode(), 3, ()),
        (same, 3, ()),
        (pa.array([{"bytes": b, "path": "\n../x"} for b in images], struct_), 3, ()),
        (
            pa.array([{"bytes": images[0]}, {"bytes": None, "path": "a.png"}, None], struct_),
            1,
            ("missing_file", "missing_file"),
        ),
        (
            pa.array([{"bytes": b""}, {"bytes": b"x"}, {"bytes": images[0][:30]}], struct_),
            0,
            ("decode_error", "missing_file", "not_an_image"),
        ),
        (pa.array([None, None, images[0]]), 1, ("missing_file",) * 2),
        (pa.nulls(2, pa.binary()), 0, ("missing_file",) * 2),
    ]
    for number, (column, captioned, failed) in enumerate(columns):
        path = _parquet(folder / f"cells{number}" / "t.parquet", {"image": column})
        yield Case(f"cells {number} of {column.type}", path, captioned, failed)
    dotted = _parquet(folder / "dots" / "t.parquet", {"my.image": images, "my": ["x", "y", "z"]})
    yield Case("column with a dot", dotted, 3, flags=("--image-column=my.image", "--id-column=my"))
    slash = _parquet(folder / "slash" / "t.parquet", {"a/b\n": images})
    yield Case("column with a slash", slash, 3, flags=("--image-column=a/b\n",))
    up = _parquet(folder / "up" / "t.parquet", {"../x": images})
    failed = ("path_escape",) * 3
    yield Case("column that leads up", up, 0, failed, flags=("--image-column=../x",))
    typed = _parquet(folder / "typed" / "t.parquet", {"image": images, "type": ["S", None, "T"]})
    flags = ("--type-column=type", "--skip-types=T")
    yield Case("types of single images", typed, 2, flags=flags)
    yield from _designs(folder, images, struct_)
    linked = folder / "linked"
    _parquet(folder / "blobs" / "1234", {"image": images})
    linked.mkdir()
    (linked / "t.parquet").symlink_to(folder / "blobs" / "1234")
    case = Case("linked table", linked / "t.parquet", refused="give --images-root")
    yield case
    yield replace(
        case, name="its root", refused="", captioned=3, flags=(f"--images-root={folder}",)
    )
    elsewhere = _with_images(folder / "elsewhere")
    flags = (f"--images-root={elsewhere}",)
    yield Case("another root", typed, refused="is not below this folder", flags=flags)
    flags = ("--images-root=s3://bucket/x",)
    yield Case("a root in a bucket", typed, refused="contains its images", flags=flags)


def _designs(folder: Path, images: Sequence[bytes], cell: pa.DataType) -> Iterator[Case]:
    cells = [{"bytes": image, "path": None} for image in images]
    designs = [cells, [cells[0], None, {"bytes": None, "path": "x"}], [], None]
    failed = ("missing_file",) * 2
    for number, kind in enumerate((pa.list_(cell), pa.large_list(cell), pa.list_(pa.binary()))):
        values = designs
        if kind.value_type == pa.binary():
            values = [[c and c["bytes"] for c in row] if row else row for row in designs]
        path = _parquet(folder / f"lists{number}" / "t.parquet", {"image": pa.array(values, kind)})
        yield Case(f"designs {number}", path, 4, failed)
    types = [[0, 1, 7], [0, None, -1], [], [0]]
    titles = pa.array([Decimal("1.5"), None, Decimal("2.5"), None])
    columns = {"image": pa.array(designs, pa.list_(cell)), "type": types, "title": titles}
    table = pa.table(columns)
    names = {"type": {"feature": {"names": ["A", "B"]}}}
    labels: Iterable[bytes] = (
        *(b"", b"{", b"[]", b"null", b'"x"', b"\xff", DEEP, b'{"info": 3}', b'{"info": {}}'),
        *(b'{"info": {"features": []}}', b'{"info": {"features": {"type": []}}}'),
        *(b'{"info": {"features": {"type": {"names": 3}}}}',),
        b'{"info": {"features": {"gone": {"names": ["A"]}, "type": {"feature": [[]]}}}}',
        json.dumps({"info": {"features": names}}).encode(),
    )
    for number, metadata in enumerate(labels):
        path = folder / f"labels{number}" / "t.parquet"
        _parquet(path, table.replace_schema_metadata({b"huggingface": metadata}))
        flags = ("--type-column=type", "--skip-types=B")
        is_named = metadata.endswith(b'"B"]}}}}}') or b'"B"' in metadata
        captioned = 3 if is_named else 4
        yield Case(f"labels {number}", path, captioned, failed, ("types_length",), flags=flags)


# --- folders -------------------------------------------------------------------------------------


def image_folders(folder: Path) -> Iterator[Case]:
    """Folders of images."""
    refused: list[tuple[str, dict[str, bytes], str]] = [
        ("empty", {}, "no file below it ends in one of"),
        ("text", {"a.txt": b"x"}, "no file below it ends in one of"),
        ("hidden", {".a.png": png(0), ".b/a.png": png(1)}, "no file below it ends in one of"),
        ("list", {"list.csv": b"image\n"}, "holds no images, but list.csv; name that"),
        ("tars", {"train/0.tar": tar(member("0.png", png(0)))}, "but train; name that"),
        ("both", {"0.tar": tar(member("0.png", png(0))), "a.png": png(1)}, "and a.png beside them"),
        ("two", {"0.tar": END, "a.parquet": b""}, "and 0.tar beside them"),
        ("half", {"a.parquet": b"", "b.jpg": b""}, "and b.jpg beside them"),
    ]
    for name, files, said in refused:
        (folder / name).mkdir()
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield Case(f"folder {name}", folder / name, refused=said)
    odd = _with_images(folder / "odd", "a.png", "b/c.JPG", "d.png/e.png", "f.tar/g.png")
    for number, name in enumerate((" .png", "a\nb.png", "\\.png", "%20.png", "é.png", "x.tar.png")):
        (odd / name).write_bytes(png(10 + number))
    (odd / unicodedata.normalize("NFD", "é.png")).write_bytes(png(20))
    (odd / (LONG + ".png")).write_bytes(png(21))
    (odd / ("b" * 250 + ".png")).write_bytes(png(22))
    Path(os.fsdecode(os.fsencode(odd) + b"/\xff.png")).write_bytes(png(23))
    (odd / "inside.png").symlink_to("a.png")
    (odd / "outside.png").symlink_to(folder.parent)
    (odd / "outside.jpg").symlink_to("/etc/passwd")
    (odd / "circle.png").symlink_to("circle.png")
    (odd / "gone.png").symlink_to("nowhere.png")
    (odd / "self").symlink_to(".")
    os.mkfifo(odd / "pipe.png")
    (odd / "none.png").write_bytes(b"")
    (odd / "text.png").write_bytes(b"text")
    kinds = ("bad_name", "bad_name", "path_escape", "unreadable", "missing_file", "not_a_file")
    kinds += ("not_an_image",) * 2
    skipped = ("not_a_file",) * 2
    yield Case("odd folder", odd, 13, kinds, skipped, defects=22)
    deep = folder / "deep"
    below = os.open(_with_images(deep, "a.png"), os.O_RDONLY)
    for number in range(1200):
        name = f"{number % 100}"
        os.mkdir(name, dir_fd=below)
        inner = os.open(name, os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = inner
    opened = os.open("deep.png", os.O_WRONLY | os.O_CREAT, dir_fd=below)
    os.write(opened, png(1))
    os.close(opened)
    os.close(below)
    yield Case("a folder 1,200 deep", deep, 2)


def other_paths(folder: Path) -> Iterator[Case]:
    """Inputs that are none of these."""
    for name in ("pipe.csv", "pipe.tar", "pipe.jsonl", "pipe.parquet"):
        os.mkfifo(folder / name)
        yield Case(name, folder / name, refused="not a regular file")
    for name in ("gone.csv", "gone.tar", "gone.parquet", "gone"):
        yield Case(name, folder / name, refused="does not exist")
    for name in ("dangling.csv", "dangling.tar"):
        (folder / name).symlink_to("nowhere")
        yield Case(name, folder / name, refused="does not exist")
    for name in ("circle.csv", "circle.tar"):
        (folder / name).symlink_to(name)
        yield Case(
            name, folder / name, refused="cannot be read (Too many levels of symbolic links)"
        )
    (folder / "latin").mkdir()
    path = Path(os.fsdecode(os.fsencode(folder / "latin") + b"/\xff.tar"))
    path.write_bytes(tar(member("0.png", png(0))))
    yield Case("tar with another name", path, refused="is not UTF-8; rename it")
    images = _with_images(folder / "csv.csv", "a.png")
    yield Case("folder that is called as a table", images, 1)
    for flag in ("--id-column=x", "--image-column=x", "--type-column=x"):
        yield Case(f"folder and {flag}", images, refused="applies to a table, and", flags=(flag,))


if __name__ == "__main__":
    import sys

    found = list(make_collections(Path(sys.argv[1])))
    print(len(found), "collections,", sum(case.defects for case in found), "hostile inputs")
