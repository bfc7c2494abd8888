"""prepare_dataset.py: sources of every kind, errors, hostile archives, and the resulting tensors."""

import gzip
import hashlib
import http.server
import io
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT, error_line, image_set
from launch import Run

import dataset
import imgproc
import prepare_dataset
from evaluation import sets
from images import archives, fetching, named_sets, prepared, reading, writing
from system import download
from system.files import Note
from system.settings import load

RANDOM = np.random.default_rng(0)
LAYOUTS = {
    "ours": {"T91": "T91", "Set5": "Set5"},
    "archive": {"T91": "root-78be1a2/Train", "Set5": "root-78be1a2/Test/Set5"},
}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Return {(set, file): content} of a small T91 and Set5, with a manifest of their own in place of the real one."""
    images = {}
    for name, count in (("T91", 6), ("Set5", 2)):
        for i in range(count):
            writing.write_image(
                tmp_path / "image.bmp", RANDOM.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
            )
            images[name, f"t{i}.bmp"] = (tmp_path / "image.bmp").read_bytes()
    (tmp_path / "image.bmp").unlink()
    manifest = {
        name: {f: hashlib.sha256(c).hexdigest() for (n, f), c in images.items() if n == name}
        for name in ("T91", "Set5")
    }
    monkeypatch.setattr(named_sets, "manifest", lambda: manifest)
    monkeypatch.setattr(download, "PAUSE", 0)
    return images


def zip_of(members: dict) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: dict, mode="w") -> bytes:
    """Return a tar file; members: {name: content, or a TarInfo for a link}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if isinstance(content, bytes) else 0
            archive.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def laid_out(images: dict, layout="archive") -> dict:
    return {f"{LAYOUTS[layout][name]}/{file}": content for (name, file), content in images.items()}


def main(tmp_path, *arguments):
    """Run the script in this process, with T91 and Set5 in tmp_path/data."""
    prepare_dataset.main(
        load(
            "prepare_dataset",
            ["--data_dir", str(tmp_path / "data"), "--test_sets", "Set5", *arguments],
        )
    )


def fetched(tmp_path) -> dict:
    return {(p.parent.name, p.name): p.read_bytes() for p in (tmp_path / "data").glob("*/*.*")}


# ------------------------------------------------------------------------------------------------------ the real images
def test_the_real_sets(shared, tmp_path, run_script):
    """Run it as a user does: counts, the paper's number of sub-images, and tensors for torch alone."""
    process = run_script("prepare_dataset.py", "--source", shared / "data")
    assert process.returncode == 0, process.stderr
    assert "T91-y: 91 images" in process.stdout and "21,884 sub-images" in process.stdout
    assert "Set5-y: 5 images" in process.stdout and "Set14-y: 14 images" in process.stdout
    code = (
        "import sys; sys.modules.update(cv2=None, skimage=None)\nfrom images.prepared import load_prepared\n"
        "found = load_prepared('data/prepared/T91-y', mmap=True)\n"
        "names, images = found.names, found.images\n"
        "print(len(names), images[0].dtype, images[0].shape[0], sum(i.numel() for i in images))"
    )
    (tmp_path / "code.py").write_text(code)
    process = run_script(tmp_path / "code.py")
    assert process.stdout.split() == ["91", "torch.uint8", "1", "5355633"], process.stderr


def test_sub_images_are_counted_as_they_are_cut():
    for height, width, scale in ((33, 33, 3), (34, 100, 3), (32, 99, 2), (5, 5, 4), (61, 47, 4)):
        tops, lefts = (range(0, size // scale * scale - 32, 14) for size in (height, width))
        count = len([(top, left) for top in tops for left in lefts])
        grid = dataset.crop_grid([(height, width)] * 2, scale, 33, 14)
        assert grid.prod(1).sum() == 2 * count


# -------------------------------------------------------------------------------------------------------------- sources
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_sources(tiny, tmp_path, kind, layout):
    members, source = laid_out(tiny, layout), tmp_path / f"source.{kind}"
    if kind == "folder":
        for name, content in members.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    else:
        source.write_bytes(
            zip_of(members)
            if kind == "zip"
            else tar_of(members, "w:gz" if kind == "tar.gz" else "w")
        )
    main(tmp_path, "--source", str(source))
    assert fetched(tmp_path) == tiny
    found = prepared.load_prepared(tmp_path / "data" / "prepared" / "T91-y")
    names, images = found.names, found.images
    assert names == [f"t{i}" for i in range(6)]
    assert (
        images[3][0].numpy()
        == imgproc.rgb2y(reading.read_image(tmp_path / "data" / "T91" / "t3.bmp"))
    ).all()


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c[:500] + bytes([c[500] ^ 1]) + c[501:], lambda c: b""]
)
def test_a_damaged_image_in_the_source_is_named_and_nothing_written(tiny, tmp_path, damage):
    members = laid_out(tiny) | {"root-78be1a2/Train/t4.bmp": damage(tiny["T91", "t4.bmp"])}
    (tmp_path / "source.zip").write_bytes(zip_of(members))
    with pytest.raises(ValueError, match=r"source=.*source.zip: T91/t4.bmp is damaged"):
        main(tmp_path, "--source", str(tmp_path / "source.zip"))
    assert fetched(tmp_path) == {}


def test_only_what_is_missing_or_damaged_is_taken(tiny, tmp_path):
    (tmp_path / "source.zip").write_bytes(zip_of(laid_out(tiny)))
    main(tmp_path, "--source", str(tmp_path / "source.zip"))
    image = tmp_path / "data" / "T91" / "t2.bmp"
    image.write_bytes(b"damaged")
    (tmp_path / "data" / "Set5" / "t1.bmp").unlink()
    part = {"T91/t2.bmp": tiny["T91", "t2.bmp"], "Set5/t1.bmp": tiny["Set5", "t1.bmp"]}
    (tmp_path / "part.zip").write_bytes(zip_of(part))
    main(tmp_path, "--source", str(tmp_path / "part.zip"))
    assert fetched(tmp_path) == tiny


def test_sources_without_the_images(tiny, tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for source, words in (
        ("text.zip", "no readable"),
        ("empty", "lacks T91/t0.bmp and 7 more"),
        ("none", "no such"),
        ("fifo", "a FIFO"),
    ):
        with pytest.raises(ValueError, match=f"source=.*{source}: {words}"):
            main(tmp_path, "--source", str(tmp_path / source))


# ------------------------------------------------------------------------------------------------------------- download
@pytest.fixture
def server(monkeypatch):
    """Start a web server; ``server.answers`` is the list of what it answers next, the last one for good: an HTTP status,
    (content, announced length) or content, sent in chunks without a length as GitHub does; or {path: such a list}."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.server.asked += 1
            self.server.paths.append(self.path)
            answers = self.server.answers
            answers = answers[self.path] if isinstance(answers, dict) else answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            self.close_connection = True
            if isinstance(answer, int):
                self.send_error(answer)
                return
            content, length = answer if isinstance(answer, tuple) else (answer, None)
            self.send_response(200)
            self.send_header(
                *(
                    ("Transfer-Encoding", "chunked")
                    if length is None
                    else ("Content-Length", str(length))
                )
            )
            self.end_headers()
            self.wfile.write(
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content) if length is None else content
            )

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.paths = 0, []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(fetching, "ARCHIVE", f"{address}/archive.zip")
    monkeypatch.setattr(fetching, "RAW", f"{address}/data")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def test_download_tries_again_and_is_not_repeated(tiny, tmp_path, server):
    content = zip_of(laid_out(tiny))
    server.answers = [503, (content[:-100], len(content)), content]
    main(tmp_path)
    assert server.asked == 3 and fetched(tmp_path) == tiny
    main(tmp_path)
    assert server.asked == 3 and not list((tmp_path / "data").glob("*.zip*"))


def test_download_that_never_succeeds(tiny, tmp_path, server):
    content = zip_of(laid_out(tiny))
    for answer in (
        404,
        (content[:1000], len(content)),
        content[:1000],
        b"<html>log in to this network</html>",
    ):
        server.answers, server.asked = [answer], 0
        with pytest.raises(
            OSError, match=r"cannot download http.*--source FILE.*--train_set sample --test_sets"
        ):
            main(tmp_path)
        assert server.asked == fetching.ATTEMPTS and not list((tmp_path / "data").iterdir())


def test_download_with_a_damaged_image(tiny, tmp_path, server):
    """The archive is intact but differs from the manifest: nothing of it is kept, and the next run fetches it again."""
    server.answers = [
        zip_of(laid_out(tiny) | {"root-78be1a2/Test/Set5/t0.bmp": b"BM"}),
        zip_of(laid_out(tiny)),
    ]
    with pytest.raises(ValueError, match="Set5/t0.bmp is damaged .*run this again"):
        main(tmp_path)
    assert not list((tmp_path / "data").iterdir())
    main(tmp_path)
    assert fetched(tmp_path) == tiny


@pytest.fixture
def single(tiny, tmp_path, monkeypatch):
    """Return {(set, file): content} of a small BSD100 and Urban100, in the manifest with `tiny`'s."""
    images = {}
    for name, scale in (("BSD100", 3), ("Urban100", 4)):
        for i in range(1, 6):
            pixels = RANDOM.integers(0, 256, (12, 9 + i, 3), dtype=np.uint8)
            writing.write_image(tmp_path / "image.png", pixels)
            content = (tmp_path / "image.png").read_bytes()
            images[name, f"img_00{i}_SRF_{scale}_HR.png"] = content
    known = dict(named_sets.manifest())
    for (name, file), content in images.items():
        known.setdefault(name, {})[file] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(named_sets, "manifest", lambda: known)
    return images


def address(key) -> str:
    name, file = key
    return f"/data/{fetching.FILE_BY_FILE[name]}/{file}"


def fetch_single(tmp_path, *words):
    """Prepare BSD100 and Urban100 as test sets."""
    sets = ["--train_set", "BSD100", "--test_sets", "BSD100", "Urban100"]
    main(tmp_path, *sets, *words)


def test_file_by_file(single, tmp_path, server, capsys):
    """Each image is tried again on its own; a second run takes missing and damaged images."""
    server.answers = {address(key): [content] for key, content in single.items()}
    (a, b, c, d, *_), path = single, next(iter(single))
    for key, fault in zip((a, b, c, d), (503, (single[b][:50], len(single[b])), b"<html>", b"")):
        server.answers[address(key)].insert(0, fault)
    fetch_single(tmp_path)
    assert fetched(tmp_path) == single and server.asked == len(single) + 4
    found = prepared.load_prepared(tmp_path / "data" / "prepared" / "Urban100-y")
    names, images = found.names, found.images
    assert len(names) == 5 and images[0].shape == (1, 12, 10)
    assert "BSD100, Urban100" in capsys.readouterr().err  # the bar
    (tmp_path / "data" / path[0] / path[1]).write_bytes(b"damaged")
    (tmp_path / "data" / "Urban100" / "img_003_SRF_4_HR.png").unlink()
    server.paths.clear()
    fetch_single(tmp_path)
    assert sorted(server.paths) == sorted(
        map(address, [path, ("Urban100", "img_003_SRF_4_HR.png")])
    )
    assert fetched(tmp_path) == single
    fetch_single(tmp_path)
    assert len(server.paths) == 2


@pytest.mark.parametrize("fault", [404, b"<html>log in to this network</html>", (b"PNG", 5000)])
def test_file_by_file_that_ends_early(single, tmp_path, server, fault):
    """The error is one line; complete images stay, incomplete ones do not; the next run fetches the rest."""
    server.answers = {address(key): [content] for key, content in single.items()}
    last = list(single)[-1]
    server.answers[address(last)] = [fault]
    with pytest.raises(
        OSError, match=r"cannot download http.*SRF_4_HR.png .*run this again.*--source"
    ):
        fetch_single(tmp_path)
    assert fetched(tmp_path).items() < single.items()
    assert server.paths.count(address(last)) == fetching.ATTEMPTS
    arrived = set(fetched(tmp_path))
    server.answers[address(last)], server.paths = [single[last]], []
    fetch_single(tmp_path)
    assert fetched(tmp_path) == single
    assert sorted(server.paths) == sorted(address(key) for key in single.keys() - arrived)


@pytest.mark.parametrize(
    "layout", ["ours", "SelfExSR", "SelfExSR.zip", "SelfExSR.tar.gz", "one set"]
)
def test_sources_of_single_files(single, tmp_path, layout):
    """The source has data_dir's layout, the repository's (unpacked, as an archive), or is a set's own folder."""
    source, above = tmp_path / layout, "SelfExSR-master/data/"
    members = {
        f"{f'{n}/' if layout == 'ours' else above + archives.PLACES[n][1] + '/'}{f}": content
        for (n, f), content in single.items()
    }
    # The same names lie in other folders there
    members |= {name.replace("BSD100", "Set5"): b"another" for name in members if "BSD100" in name}
    if layout.endswith("zip"):
        source.write_bytes(zip_of(members))
    elif layout.endswith("gz"):
        source.write_bytes(tar_of(members, "w:gz"))
    else:
        for name, content in members.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(content)
    if layout != "one set":
        fetch_single(tmp_path, "--source", str(source))
        assert fetched(tmp_path) == single
        return
    words = ["--train_set", "Urban100", "--test_sets", "Urban100"]
    main(tmp_path, *words, "--source", str(source / above / "Urban100" / "image_SRF_4"))
    assert fetched(tmp_path) == {key: c for key, c in single.items() if key[0] == "Urban100"}
    with pytest.raises(
        ValueError, match=r"lacks BSD100/img_001.*and 4 more; they belong into BSD100/ or"
    ):
        fetch_single(tmp_path, "--source", str(source / above / "Urban100"))


@pytest.mark.slow
def test_the_real_bsd100(shared, tmp_path, capsys):
    """The manifest lists the images of the literature's figures."""
    image_set(shared, "BSD100")
    words = ["--train_set", "BSD100", "--test_sets", "BSD100", "--source", str(shared / "data")]
    main(tmp_path, *words)
    assert "BSD100-y: 100 images" in capsys.readouterr().out


@pytest.mark.parametrize("way", ["server", "folder", "repository"])
def test_t291_is_t91_and_the_training_images_of_bsds500(tiny, tmp_path, server, monkeypatch, way):
    """Its two parts lie in folders of their own, whichever way they come; BSD200 is the test part."""
    parts = {"BSDS500-train": "train", "BSD200": "test"}
    files = {}
    for name in parts:
        for file in ("12003.jpg", f"{len(name)}.jpg"):
            pixels = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            writing.write_image(tmp_path / "image.jpg", pixels)
            files[name, file] = (tmp_path / "image.jpg").read_bytes()
    known = dict(named_sets.manifest())
    for (name, file), content in files.items():
        known.setdefault(name, {})[file] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(named_sets, "manifest", lambda: known)
    words = ["--train_set", "T291", "--test_sets", "BSD200"]
    if way == "server":
        server.answers = {address(key): [content] for key, content in files.items()}
        server.answers["/archive.zip"] = [zip_of(laid_out(tiny))]
    else:
        source = tmp_path / "source"
        for (name, file), content in {**tiny, **files}.items():
            place = f"BSDS500/data/images/{parts.get(name)}" if name in parts else name
            folder = source / (place if way == "repository" else name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        words += ["--source", str(source)]
    main(tmp_path, *words)
    t91 = {key: content for key, content in tiny.items() if key[0] == "T91"}
    assert fetched(tmp_path) == {**t91, **files}
    names = prepared.load_prepared(tmp_path / "data/prepared/T291-y").names
    assert names == [f"t{i}" for i in range(6)] + ["12003", "13"]
    names = prepared.load_prepared(tmp_path / "data/prepared/BSD200-y").names
    assert names == ["12003", "6"]
    (tmp_path / "data" / "BSDS500-train" / "13.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="BSDS500-train: 1 of the 8 images of T291 are not"):
        named_sets.image_paths(tmp_path / "data", "T291")


def test_the_manifest_keeps_training_and_test_images_apart():
    sets = {name: set(files.values()) for name, files in named_sets.manifest().items()}
    assert len(sets["BSDS500-train"]) == len(sets["BSD200"]) == 200
    trained = sets.pop("T91") | sets.pop("BSDS500-train")
    assert not any(trained & digests for digests in sets.values())
    assert len(named_sets.known_files("T291")) == 291


def test_no_network(tmp_path, run_script):
    line = error_line(run_script("prepare_dataset.py", https_proxy="http://127.0.0.1:9"))
    assert "--source FILE" in line and "--train_set sample --test_sets sample" in line
    process = run_script(
        "prepare_dataset.py",
        "--train_set",
        "sample",
        "--test_sets",
        "sample",
        https_proxy="http://127.0.0.1:9",
    )
    assert process.returncode == 0 and "sample-train-y: 10 images" in process.stdout, process.stderr
    assert sorted(p.name for p in (tmp_path / "data" / "prepared").iterdir()) == [
        "sample-test-y",
        "sample-train-y",
    ]


# ----------------------------------------------------------------------------------------------------- hostile archives
def test_a_misspelt_set_shows_before_any_download(tiny, tmp_path, server):
    for name, meant in (("set5", "Set5"), ("Set-5", "Set5"), ("Set 55", "Set5")):
        with pytest.raises(OSError, match=f"^{name}: no folder, and none of T91, .*did you mean"):
            main(tmp_path, "--test_sets", name)
        assert named_sets.unknown_set(name).endswith(f"did you mean {meant}?")
    assert server.asked == 0


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def hostile_archives(tiny):
    secret = tiny["T91", "t0.bmp"]
    outside = {"../T91/t0.bmp": secret, "/tmp/T91/t0.bmp": secret, "x/../../T91/t0.bmp": secret}
    yield "lacks", zip_of(outside)
    yield "lacks", tar_of(outside)
    yield (
        "lacks",
        tar_of(
            {
                "T91/t0.bmp": link("T91/t0.bmp", "/etc/passwd"),
                "T91": link("T91", "/tmp"),
                "T91/t1.bmp": link("T91/t1.bmp", "/etc/passwd", tarfile.LNKTYPE),
                "T91/t2.bmp": link("T91/t2.bmp", "", tarfile.CHRTYPE),
            }
        ),
    )
    yield (
        "lacks",
        zip_of({"T91/t0.bmp/x": b"", "T91\\t0.bmp": secret, "T91/./../T91/t0.bmp": secret}),
    )
    everything = laid_out(tiny)
    yield "T91/t0.bmp is damaged", zip_of(everything | {"root-78be1a2/Train/t0.bmp": bytes(10**8)})
    yield (
        "T91/t0.bmp is damaged",
        tar_of(everything | {"root-78be1a2/Train/t0.bmp": bytes(10**8)}, "w:gz"),
    )
    yield "more than 256 MB", gzip.compress(bytes(2**28 + 1), 1)
    pax = tarfile.TarInfo("x")
    pax.type, pax.size = tarfile.XHDTYPE, 2**32
    yield "no readable|lacks", pax.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    good = zip_of(everything)
    yield "no readable|damaged|lacks", good[: len(good) // 2]
    yield (
        "no readable|damaged|lacks",
        good.replace(b"\x14\0\0\0\x08\0", b"\x14\0\x01\0\x08\0"),
    )  # "encrypted"


def test_hostile_archives(tiny, tmp_path):
    """Refused in one line, with nothing written anywhere, links not followed, bombs not unpacked."""
    folder = tmp_path / "a" / "b"
    for words, content in hostile_archives(tiny):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "source").write_bytes(content)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=words) as error:
            main(folder, "--source", str(folder / "source"))
        assert "\n" not in str(error.value) and sorted(tmp_path.rglob("*")) == before


def test_fuzzed_archives_end_well_or_in_one_line(tiny, tmp_path):
    """900 mutated archives: all images, or one line and none of them."""
    seeds = [zip_of(laid_out(tiny)), tar_of(laid_out(tiny)), tar_of(laid_out(tiny), "w:gz")]
    wanted = {key: hashlib.sha256(content).hexdigest() for key, content in tiny.items()}
    whole = refused = 0
    for i in range(900):
        data = bytearray(seeds[i % 3])
        for _ in range(RANDOM.integers(1, 8)):
            position = (
                RANDOM.integers(0, len(data)) if RANDOM.random() < 0.7 else -RANDOM.integers(1, 900)
            )
            data[position] = RANDOM.integers(0, 256)
        (tmp_path / "fuzzed").write_bytes(
            data[: RANDOM.integers(0, len(data))] if i % 5 == 0 else data
        )
        try:
            assert archives.read_source(tmp_path / "fuzzed", wanted) == tiny
            whole += 1
        except ValueError as error:
            refused += 1
            assert len(str(error)) < 500
    assert whole and refused


# -------------------------------------------------------------------------------------------------------------- tensors
def folder_of_images(folder, count=8, side=100):
    for i in range(count):
        writing.write_image(
            folder / f"{i:02d}.png", RANDOM.integers(0, 256, (side, side + i, 3), dtype=np.uint8)
        )
    return sorted(folder.iterdir())


def write(paths, folder, channels=1):
    """Prepare single images; returns the complaints."""
    return prepared.prepare([(path,) for path in paths], folder, channels, ["photos"])


def test_kinds_of_images(tmp_path):
    colour = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    gray, alpha = colour[..., 0], np.dstack([colour, colour[..., :1] | 1])  # all of it visible
    for name, image in (
        ("gray", gray),
        ("colour", colour),
        ("alpha", alpha),
        ("deep", colour.astype(np.uint16) * 257),
    ):
        writing.write_image(tmp_path / f"{name}.png", image)
        y, rgb = (
            prepared.training_image(tmp_path / f"{name}.png", channels) for channels in (1, 3)
        )
        assert y.dtype == rgb.dtype == torch.uint8 and y.is_contiguous() and rgb.is_contiguous()
        assert (y.numpy() == (gray if name == "gray" else imgproc.rgb2y(colour))[None]).all()
        assert (
            rgb.numpy() == (np.stack([gray] * 3) if name == "gray" else colour.transpose(2, 0, 1))
        ).all()


def test_a_folder_whose_name_is_no_utf8(tmp_path):
    """torch cannot open such names: the prepared set has another one."""
    folder = prepared.prepared_folder(tmp_path, tmp_path / os.fsdecode(b"a\xff\xe9b"), "y")
    assert folder == tmp_path / "prepared" / "a_ff_e9b-y"


def test_a_file_in_place_of_a_folder_is_named_so(tmp_path):
    writing.write_image(tmp_path / "a.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(FileNotFoundError, match="a.png: a file; give its folder"):
        named_sets.image_paths(tmp_path, str(tmp_path / "a.png"))


def test_remarks_escape_names(tmp_path, capsys):
    image = RANDOM.integers(0, 256, (9, 9), np.uint8)
    writing.write_image(tmp_path / "in" / "a.png", image)
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / "\x1b[31m\nred.png")
    words = ["--train_set", str(tmp_path / "in"), "--test_sets", "--data_dir", str(tmp_path)]
    prepare_dataset.main(load("prepare_dataset", words))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and r"\x1b[31m\nred" in printed


def test_rounded_16_bits_are_one_note(tmp_path):
    image = RANDOM.integers(0, 65536, (20, 20, 3), dtype=np.uint16)
    for name in ("a", "b", "c"):
        writing.write_image(tmp_path / "in" / f"{name}.png", image)
    writing.write_image(tmp_path / "in" / "d.png", imgproc.eight_bits(image))
    with pytest.warns(Note, match="3 of 4 images have 16 bits .* rounded to 8 .*: a.png") as caught:
        assert write(sorted((tmp_path / "in").iterdir()), tmp_path / "prepared") == []
    assert len(caught) == 1


def test_shards_hold_what_fits_and_only_changed_ones_are_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared, "SHARD_BYTES", 25_000)  # two images each
    paths, folder = folder_of_images(tmp_path / "photos"), tmp_path / "prepared"
    write(paths, folder)
    shards = sorted(folder.iterdir())
    assert [p.name for p in shards] == [f"{i:05d}-of-00004.pth" for i in range(4)]
    before = [p.stat().st_mtime_ns for p in shards]
    writing.write_image(paths[5], np.full((90, 90, 3), 255, np.uint8))
    (folder / "00001-of-00004.pth.tmp-99").write_text("left by a killed run")
    write(paths, folder)
    assert sorted(folder.iterdir()) == shards
    assert [p.stat().st_mtime_ns == t for p, t in zip(shards, before)] == [True, True, False, True]
    shards[0].write_bytes(shards[0].read_bytes()[:-500])
    write(paths[:6], folder)  # a smaller set: other names, none of the old left
    found = prepared.load_prepared(folder)
    names, images = found.names, found.images
    assert names == [f"{i:02d}" for i in range(6)] and (images[5] == 235).all()


def test_a_run_that_ended_early_is_completed(tmp_path, monkeypatch):
    """Killed outright while it works; the second run keeps the finished shards."""
    paths = folder_of_images(tmp_path / "photos", 12)
    code = (
        "import sys, time, pathlib\nfrom images import prepared as p\np.SHARD_BYTES, work = 25_000, p.read_image\n"
        "def slow(path):\n    time.sleep(60 * (path.stem >= '08'))\n    return work(path)\n"
        "p.read_image = slow\np.prepare([(f,) for f in sorted(pathlib.Path('photos').iterdir())], pathlib.Path('prepared'), 1, ['photos'])"
    )
    (tmp_path / "code.py").write_text(code)
    run = Run(tmp_path / "code.py", cwd=tmp_path)
    run.wait_for(lambda: len(list((tmp_path / "prepared").glob("*.pth"))) == 4)
    run.process.kill()
    assert run.wait() == -signal.SIGKILL
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "prepared").glob("*.pth")}
    assert len(finished) == 4
    with pytest.raises(FileNotFoundError, match="not prepared"):
        prepared.load_prepared(tmp_path / "prepared")
    monkeypatch.setattr(prepared, "SHARD_BYTES", 25_000)
    write(paths, tmp_path / "prepared")
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())
    found = prepared.load_prepared(tmp_path / "prepared", mmap=True)
    names, images = found.names, found.images
    assert len(names) == 12
    assert all(
        torch.equal(image, prepared.training_image(path, 1)) for path, image in zip(paths, images)
    )


# ---------------------------------------------------------------------------- origin of a set
def photos(folder, seed, count=4, side=60):
    """Make images with the same names, sizes and times for every seed."""
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.integers(0, 256, (side, side + i, 3), dtype=np.uint8)
        writing.write_image(folder / f"{i}.bmp", pixels)
        os.utime(folder / f"{i}.bmp", (1_577_836_800,) * 2)
    return folder


def prepare_set(name, *words):
    prepare_dataset.main(load("prepare_dataset", ["--train_set", str(name), "--test_sets", *words]))


def opened(name, *words):
    """Return the crops and held-out images, as in train.py."""
    argv = ["--train_set", str(name), "--test_sets", "--holdout", "1", "--crop_size", "33", *words]
    settings = load("train", argv)
    return dataset.training_set(settings, 1, 0, 1, torch.device("cpu"))


def test_a_set_of_another_folder_is_refused(tmp_path, monkeypatch):
    """A/train and B/train have one last name: the prepared tensors are of one of them."""
    monkeypatch.chdir(tmp_path)
    for folder, seed in (("A/train", 0), ("B/train", 1)):
        photos(tmp_path / folder, seed)
        prepare_set(folder)
    words = "train-y: prepared from .*B.train, not from A/train; run prepare_dataset.py"
    with pytest.raises(ValueError, match=words):
        opened("A/train")
    with pytest.raises(ValueError, match=words):
        argv = ["--train_set", "B/train", "--test_sets", "A/train"]
        dataset.validation_sets(load("train", argv), [])
    assert opened("B/train")[0].notes == [] == opened(tmp_path / "B" / "train")[0].notes
    prepare_set("A/train")
    opened("A/train")
    # None of the other folder's images is kept, although names, sizes and times are the same
    images = prepared.load_prepared("data/prepared/train-y").images
    path = tmp_path / "A" / "train" / "2.bmp"
    assert torch.equal(images[2], prepared.training_image(path, 1))


def test_images_that_changed_are_noticed(tmp_path, monkeypatch):
    """Contents are compared, also for equal names, sizes and times."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "train", 0)
    prepare_set("train")
    # The same images with new times, as after a copy
    for path in (tmp_path / "train").iterdir():
        os.utime(path)
    assert opened("train")[0].notes == []
    shard = tmp_path / "data/prepared/train-y/00000-of-00001.pth"
    before = shard.read_bytes()
    prepare_set("train")  # records the new times
    assert shard.read_bytes() != before
    photos(tmp_path / "other", 1)
    (tmp_path / "other" / "2.bmp").replace(tmp_path / "train" / "2.bmp")
    words = "train.2.bmp has changed since train was prepared; run prepare_dataset.py"
    with pytest.raises(ValueError, match=words):
        opened("train")
    prepare_set("train")
    opened("train")
    (tmp_path / "train" / "3.bmp").unlink()
    with pytest.raises(ValueError, match="3.bmp has changed"):
        opened("train")


def test_a_set_without_its_images(tmp_path, monkeypatch):
    """On a machine for training alone the paths are compared."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "A" / "train", 0)
    prepare_set("A/train")
    (tmp_path / "A").rename(tmp_path / "gone")
    assert "trains on the tensors of" in opened("A/train")[0].notes[0]
    assert opened(tmp_path / "A" / "train")[0].notes == []
    for name in ("B/train", tmp_path / "B" / "train"):
        with pytest.raises(ValueError, match="if these are the images, name them as .*A.train"):
            opened(name)


def test_known_sets_are_known_by_their_contents(tiny, tmp_path, monkeypatch):
    """T91's images may lie anywhere; other images in a folder of this name are refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "source.zip").write_bytes(zip_of(laid_out(tiny)))
    main(tmp_path, "--source", "source.zip")
    (tmp_path / "data" / "T91").rename(tmp_path / "gone")
    opened("T91")
    photos(tmp_path / "x" / "T91", 0)
    with pytest.raises(ValueError, match="prepared from T91, not from x/T91"):
        opened("x/T91")
    prepare_set("x/T91")
    opened("x/T91")
    with pytest.raises(ValueError, match="prepared from .*x.T91, not from T91"):
        opened("T91")


def test_sets_of_older_versions_are_prepared_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "train", 0)
    prepare_set("train")
    shard = tmp_path / "data/prepared/train-y/00000-of-00001.pth"
    content = torch.load(shard)
    torch.save({key: content[key] for key in ("names", "images")}, shard)
    with pytest.raises(ValueError, match="older version; run prepare_dataset.py"):
        opened("train")
    prepare_set("train")
    opened("train")


# ------------------------------------------------------------------------------ left-out files
def test_all_files_that_cannot_be_used_are_named(tmp_path, run_script):
    """One run lists them all; the set is not prepared, and finished shards stay."""
    photos(tmp_path / "train", 0, 6)
    (tmp_path / "train" / "1.bmp").write_bytes(b"no image")
    whole = (tmp_path / "train" / "4.bmp").read_bytes()
    (tmp_path / "train" / "4.bmp").write_bytes(whole[:2000])
    (tmp_path / "train" / "5.bmp").unlink()
    (tmp_path / "train" / "5.bmp").symlink_to("nothing")
    process = run_script("prepare_dataset.py", "--train_set", "train", "--test_sets")
    line = error_line(process)
    assert "train-y: not prepared, because 3 of its 6 files cannot be used (" in line
    for name in ("1.bmp", "4.bmp", "5.bmp"):
        assert re.search(rf"^cannot be used: .*{name}", process.stderr, re.MULTILINE)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        prepared.load_prepared(tmp_path / "data/prepared/train-y")


def test_what_is_not_read_is_named(tmp_path, monkeypatch, capsys):
    """GIFs, texts, pipes and sockets; images smaller than a crop, or too small to be measured."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "train", 0)
    for name in ("anim.gif", "notes.txt"):
        (tmp_path / "train" / name).write_bytes(b"")
    os.mkfifo(tmp_path / "train" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("train/plug.bmp")
        prepare_set("train", "train", "--crop_size", "61", "--upscale_factor", "2")
        _, lines = sets.find_sets(load("validate", ["--test_sets", "train"]))
    out = capsys.readouterr().out
    line = "train: 4 files are not read: anim.gif, notes.txt, pipe.png, plug.bmp"
    assert line in out and lines == [line]
    assert (
        "4 are smaller than crop_size=61, so train.py does not\n  train on them: 0, 1, 2, 3" in out
    )
    prepare_set("sample", "train", "--upscale_factor", "30")
    assert "4 are too small to be measured at x30: 0, 1, 2, 3" in capsys.readouterr().out


def test_small_training_images_are_named(tmp_path, monkeypatch):
    """Neither trained on nor held out; the held-out images are chosen among the large ones."""
    monkeypatch.chdir(tmp_path)
    folder = photos(tmp_path / "train", 0, 8)
    for i in (1, 4, 7):
        writing.write_image(folder / f"{i}.bmp", np.zeros((14, 14, 3), np.uint8))
    prepare_set("train")
    crops, holdout = opened("train", "--holdout", "3")
    assert [name for name, _ in holdout] == ["2", "3", "6"]
    assert crops.notes == [
        "3 of the 8 images are smaller than crop_size=33, so not trained on: 1, 4, 7",
        "3 are too small to be measured, so not held out: 1, 4, 7",
    ]
    with pytest.raises(ValueError, match="holdout=6: only 5 of the 8 training images are large"):
        opened("train", "--holdout", "6")


# ------------------------------------------------------------------------------- the true causes
def test_damaged_is_said_of_damage_alone(tmp_path, monkeypatch):
    """Permission, disk and version errors name themselves."""
    write(folder_of_images(tmp_path / "photos", 2), tmp_path / "set")
    shard = tmp_path / "set" / "00000-of-00001.pth"
    whole = shard.read_bytes()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(shard))

    with monkeypatch.context() as patch:
        patch.setattr(type(shard), "open", refuse)
        with pytest.raises(PermissionError, match="Permission denied.*00000-of-00001.pth"):
            prepared.load_prepared(tmp_path / "set")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: 1 / 0)
        with pytest.raises(ValueError, match="torch .* cannot read it .division by zero.; prepare"):
            prepared.load_prepared(tmp_path / "set")
        shard.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="damaged .*; delete it and run prepare_dataset.py"):
            prepared.load_prepared(tmp_path / "set")
    torch.save([1], shard)
    with pytest.raises(ValueError, match="not a prepared set"):
        prepared.load_prepared(tmp_path / "set")


def test_a_name_that_the_locale_cannot_pass_to_torch(tmp_path):
    write(folder_of_images(tmp_path / "photos", 2), tmp_path / "für-y")
    code = "import os; from images.prepared import load_prepared; load_prepared(os.fsdecode(b'f\\xc3\\xbcr-y'), True)"
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, **plain, "PYTHONPATH": str(ROOT)},
    )
    last = process.stderr.decode(errors="replace").strip().split("\n")[-1]
    assert "UserError" in last and "set PYTHONUTF8=1" in last, last


def small_files_only():
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


def test_bad_folders_and_full_disks(tmp_path, run_script):
    folder_of_images(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    words = ("--test_sets", "--train_set")
    for name, error, complaint in (
        ("empty", ValueError, "no images"),
        ("Urban", OSError, "Urban: no folder.*did you mean Urban100"),
    ):
        with pytest.raises(error, match=complaint):
            prepare_dataset.main(
                load("prepare_dataset", [*words, str(tmp_path / name) if name == "empty" else name])
            )
    with pytest.raises(ValueError, match="rename one"):
        prepare_dataset.main(
            load("prepare_dataset", ["--train_set", "a/photos", "--test_sets", "b/photos"])
        )
    with pytest.raises(OSError, match="file"):
        write(sorted((tmp_path / "photos").iterdir()), tmp_path / "file" / "prepared")
    process = run_script("prepare_dataset.py", *words, "photos", before=small_files_only)
    assert re.search(r"File too large: .*00000-of-00001\.pth", error_line(process))
    assert not list((tmp_path / "data").rglob("*.pth*"))
    (tmp_path / "photos" / "text.png").write_text("no image")
    line = error_line(run_script("prepare_dataset.py", *words, "photos"))
    assert "photos/text.png: not a PNG" in line
