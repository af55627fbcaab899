"""Images in an object store, with a real S3 endpoint on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.job import (
    FAKE,
    QUICK,
    Result,
    captions,
    input_flags,
    make_gated,
    make_input,
    rows,
    run,
    start,
    wait_until,
    write_document,
)
from support.s3_server import CREDENTIALS, S3Server, s3_server

from vllm_caption.config import is_remote
from vllm_caption.errors import ItemError, UsageError
from vllm_caption.flags import parse_images_root
from vllm_caption.images import object_store
from vllm_caption.images.files import num_bytes
from vllm_caption.images.object_store import check_remote, public_root

NUM_ITEMS = 30


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def uri(tmp_path: Path, server: S3Server) -> str:
    """An input whose images are only in a bucket."""
    make_input(tmp_path, NUM_ITEMS)
    (tmp_path / "raw/text.png").write_text("not an image")
    found = server.upload(tmp_path / "raw", tmp_path.name)
    names = ["absent.png", "text.png", "../d0/shape_1.png", "d0"]
    write_document(tmp_path, "z_bad", names, ["SvgElement"] * len(names))
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    return found


def remote_run(folder: Path, uri: str, server: S3Server, *flags: str) -> Result:
    arguments = [*input_flags(folder)[:2], f"--images-root={uri}", f"--output={folder / 'out'}"]
    return run(*arguments, *QUICK, *flags, command=FAKE, environment=server.environment)


def test_images_of_a_bucket_are_captioned_and_bad_ones_have_their_kinds(
    tmp_path: Path, uri: str, server: S3Server
) -> None:
    result = remote_run(tmp_path, uri, server, f"--log-file={tmp_path / 'run.log'}")
    assert result.exit_code == 1, result.stderr
    made = rows(tmp_path / "out")
    assert len(captions(tmp_path / "out")) == NUM_ITEMS
    assert {f: r["error_kind"] for f, r in made.items() if r["status"] == "failed"} == {
        "absent.png": "missing_file",
        "text.png": "not_an_image",
        "../d0/shape_1.png": "path_escape",
        "d0": "missing_file",
    }
    assert made["d0/shape_1.png"]["image_path"] == f"{uri}/d0/shape_1.png"
    again = remote_run(tmp_path, uri, server)
    assert "(0 in this run)" in again.stdout and "failed 4" in again.stdout
    said = result.stdout + result.stderr + (tmp_path / "run.log").read_text()
    written = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
    for secret in (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], CREDENTIALS["AWS_ACCESS_KEY_ID"]):
        assert secret not in said and secret.encode() not in written


def test_options_in_a_uri_reach_the_service_and_appear_in_no_row(
    tmp_path: Path, uri: str, server: S3Server
) -> None:
    host = server.endpoint.removeprefix("http://")
    result = run(
        *input_flags(tmp_path)[:2],
        f"--images-root={uri}?endpoint_override={host}&scheme=http",
        f"--output={tmp_path / 'out'}",
        "--limit=3",
        *QUICK,
        command=FAKE,
        environment=CREDENTIALS,
    )
    assert result.exit_code == 0, result.stderr
    assert {row["image_path"].partition("?")[1] for row in rows(tmp_path / "out").values()} == {""}


def test_plan_opens_the_images_of_a_bucket(tmp_path: Path, uri: str, server: S3Server) -> None:
    arguments = (*input_flags(tmp_path)[:2], f"--images-root={uri}", "--quiet")
    report = tmp_path / "plan.json"
    command = ("-m", "vllm_caption", "plan")
    result = run(
        *arguments, "--images", f"--json={report}", command=command, environment=server.environment
    )
    assert result.exit_code == 0, result.stderr
    plan = json.loads(report.read_text())
    assert plan["images"]["found"] == NUM_ITEMS
    assert {problem["kind"] for problem in plan["items"]["problems"]} >= {"missing_file"}


def test_bucket_that_disappears_stops_the_run_instead_of_failing_every_item(tmp_path: Path) -> None:
    make_input(tmp_path, NUM_ITEMS)
    make_gated(tmp_path)
    names = [f"late/{number}.png" for number in range(40)]
    write_document(tmp_path, "zz_late", names, ["SvgElement"] * len(names))
    with s3_server() as server:
        uri = server.upload(tmp_path / "raw", "goes")
        flags = [*input_flags(tmp_path)[:2], f"--images-root={uri}", f"--output={tmp_path / 'out'}"]
        process = start(
            *flags,
            "-dp=1",
            "--max-num-seqs=1",
            "--max-retries=0",
            "--quiet",
            command=FAKE,
            environment=server.environment | {"FAKE_SLOW_STAGE": "engine"},
        )
        wait_until(lambda: captions(tmp_path / "out"), process)
        server.process.kill()
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 3, stderr
    assert f"--images-root {uri} is gone" in stderr
    assert sum(row["status"] == "failed" for row in rows(tmp_path / "out").values()) == 0


def test_missing_objects_check_the_root_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, False]
    monkeypatch.setattr(object_store, "still_answers", lambda root: answers.pop(0))
    root = object_store.RemoteRoot("s3://bucket/x")
    assert all(root.still_there() for _ in range(100))
    monkeypatch.setattr(object_store, "BELIEVED_S", 0.0)
    assert not root.still_there()
    assert not answers


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("s3://nowhere/x", "holds nothing"),
        ("s3://designs/nothing-here", "holds nothing"),
    ],
)
def test_missing_root_is_a_usage_error(server: S3Server, root: str, says: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        with pytest.raises(UsageError, match=says):
            check_remote(root)


@pytest.mark.parametrize("root", ["s3://key:secret@bucket/x", "s3://AKIA@bucket/x"])
def test_credentials_on_the_command_line_are_refused_and_not_shown(root: str) -> None:
    with pytest.raises(UsageError, match="contains credentials") as refused:
        parse_images_root(root)
    assert "secret" not in str(refused.value) and "AKIA" not in str(refused.value)


def test_unsupported_scheme_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="ftp:// is not supported"):
        parse_images_root("ftp://host/x")


@pytest.mark.parametrize("text", ["/data/raw", "raw", "s3:/not/a/uri", "C:/x"])
def test_folder_stays_a_folder(text: str) -> None:
    assert parse_images_root(text) == Path(text)
    assert not is_remote(text)


def test_root_is_shown_without_its_options() -> None:
    assert public_root("s3://b/p/?scheme=http&secret_key=x") == "s3://b/p"
    assert public_root(Path("/a?b")) == "/a?b"


def test_size_of_a_remote_name_that_escapes_is_not_requested() -> None:
    with pytest.raises(ItemError, match="path_escape"):
        num_bytes("s3://designs/x", "../secret")
