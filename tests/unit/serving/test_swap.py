"""Hot swap: a path leads to another bundle; a bundle that is not whole is never served."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.files import DataError, sha256_file
from serving import served_model
from serving.served_model import ModelSource, load_model
from serving.serving_bundle import files_of, find_serving_bundle
from tests.factories.asgi import Client, client_of, serve_options
from tests.factories.tiny_serving_bundles import lines, records, write_serving_bundle

FIRST, SECOND = f"{1:012x}", f"{2:012x}"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two bundles with their serving bundles beside them, and the link production."""
    for seed in (1, 2):
        (tmp_path / f"{seed}").mkdir()
        write_serving_bundle(tmp_path / f"{seed}.serving", seed)
    point(tmp_path, 1)
    return tmp_path


def point(models: Path, seed: int) -> None:
    """Let the link lead to a bundle, by one rename as a promotion does."""
    new = models / "new"
    new.symlink_to(f"{seed}")
    new.replace(models / "production")


@pytest.fixture
def client(models: Path) -> Iterator[Client]:
    with client_of(serve_options({"production": models / "production"})) as client:
        yield client


def version(client: Client) -> str:
    return str(client.post_lines("/score", lines(1)).json["version"])


def fault(client: Client) -> str | None:
    return client.get("/ready").json["models"]["production"]["champion"]["fault"]  # type: ignore[no-any-return]


def test_a_promotion_and_a_rollback_are_followed(models: Path, client: Client) -> None:
    assert version(client) == FIRST
    for seed, expected in ((2, SECOND), (1, FIRST), (2, SECOND)):
        point(models, seed)
        client.refresh()
        assert version(client) == expected
        assert client.metric("clickmill_model_info", version=expected) == 1
    assert client.metric("clickmill_model_info", version=FIRST) == 0
    assert client.metric("clickmill_model_loads_total", outcome="loaded") == 4


def test_a_serving_bundle_that_is_replaced_in_its_place_is_followed(
    models: Path, client: Client
) -> None:
    shutil.move(models / "1.serving", models / "old")
    shutil.copytree(models / "2.serving", models / "1.serving")
    client.refresh()
    assert version(client) == SECOND


def test_a_serving_bundle_of_another_model_than_the_bundle_is_refused(
    models: Path, client: Client
) -> None:
    """The bundle was trained again, and was not exported again."""
    (models / "1" / "bundle.json").write_text("{}\n")
    client.refresh()
    assert f"was exported from model {FIRST}, but" in str(fault(client))
    assert version(client) == FIRST
    (models / "1" / "bundle.json").unlink()
    client.refresh()
    assert fault(client) is None


@pytest.mark.parametrize("name", ["model.onnx", "state/state.json"])
def test_a_damaged_bundle_is_never_served_and_the_old_one_goes_on(
    models: Path, client: Client, name: str
) -> None:
    path = models / "2.serving" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    point(models, 2)
    client.refresh()
    assert version(client) == FIRST
    assert name in (fault(client) or "")
    assert client.get("/ready").status == 200
    assert client.metric("clickmill_model_fault", role="champion") == 1
    assert client.metric("clickmill_model_loads_total", outcome="refused") == 1
    client.refresh()  # nothing has changed, so it is not read again
    assert client.metric("clickmill_model_loads_total", outcome="refused") == 1
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    client.refresh()
    assert (version(client), fault(client)) == (SECOND, None)
    assert client.metric("clickmill_model_fault", role="champion") == 0


def test_a_bundle_that_is_being_copied_is_served_when_it_is_whole(
    models: Path, client: Client
) -> None:
    target = models / "3.serving"
    point(models, 3)
    client.refresh()
    assert "no serving bundle" in (fault(client) or "")
    names = ["serving.json", *files_of(models / "2.serving")]
    for place, name in enumerate(names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(models / "2.serving" / name, target / name)
        client.refresh()
        is_whole = place == len(names) - 1
        assert version(client) == (SECOND if is_whole else FIRST)
        assert (fault(client) is None) == is_whole


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "more", "missing"])
def test_a_bundle_with_an_odd_file_is_refused(models: Path, client: Client, kind: str) -> None:
    path = models / "2.serving" / "model.onnx"
    if kind == "more":
        path = path.with_name("more.bin")
        path.write_bytes(b"x")
    else:
        kept = path.read_bytes()
        path.unlink()
    if kind == "link":
        (models / "elsewhere").write_bytes(kept)
        path.symlink_to(models / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    point(models, 2)
    client.refresh()
    assert version(client) == FIRST
    assert path.name in (fault(client) or "")


def test_a_path_that_vanishes_and_comes_back(models: Path, client: Client) -> None:
    (models / "1.serving").rename(models / "away")
    client.refresh()
    assert version(client) == FIRST
    assert fault(client)
    (models / "away").rename(models / "1.serving")
    client.refresh()
    assert (version(client), fault(client)) == (FIRST, None)


def test_the_files_may_be_overwritten_under_a_loaded_model(models: Path, client: Client) -> None:
    before = client.post_lines("/score", lines(50)).body
    for path in (models / "1.serving").rglob("*"):
        if path.is_file():
            size = path.stat().st_size
            with path.open("r+b") as file:  # in its place, as cp does
                file.write(bytes(size))
    assert client.post_lines("/score", lines(50)).body == before
    client.refresh()
    assert client.post_lines("/score", lines(50)).body == before
    assert fault(client)


def test_what_is_checked_is_what_is_loaded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the check of the hashes and the loading, the files change to those of another one."""
    whole = served_model.load_serving_bundle

    def check_then_change(directory: Path) -> object:
        bundle = whole(directory)
        for name in ("model.onnx", "state/state.json"):
            shutil.copyfile(models / "2.serving" / name, models / "1.serving" / name)
        return bundle

    expected = load_model(models / "1.serving")
    monkeypatch.setattr(served_model, "load_serving_bundle", check_then_change)
    model = load_model(models / "1.serving")
    rows = model.encoder.encode_records(records(20))
    scores = model.runtime.scores(rows.dense_GN, rows.ids_GF)
    assert (scores == expected.runtime.scores(rows.dense_GN, rows.ids_GF)).all()
    assert sha256_file(models / "1.serving" / "model.onnx") == sha256_file(
        models / "2.serving" / "model.onnx"
    )


def test_a_swap_while_a_request_waits_does_not_mix_models(models: Path, client: Client) -> None:
    """A request is encoded and scored by one model, and its answer names this one."""
    source = client.app.services["production"].champion
    before = client.post_lines("/score", lines(9)).body
    model = source.model
    assert model
    encode = model.encoder.encode_lines

    def encode_then_swap(body: bytes) -> object:
        rows = encode(body)
        point(models, 2)
        source.refresh()
        return rows

    object.__setattr__(model, "encoder", _Swapping(encode_then_swap))
    assert client.post_lines("/score", lines(9)).body == before
    assert version(client) == SECOND


class _Swapping:
    """An encoder during whose work the model is swapped."""

    def __init__(self, encode_lines: object) -> None:
        self.encode_lines = encode_lines


def test_no_copy_is_left(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    load_model(models / "1.serving")
    (models / "2.serving" / "model.onnx").write_bytes(b"x")
    with pytest.raises(DataError):
        load_model(models / "2.serving")
    assert list(scratch.iterdir()) == []


def test_a_fault_names_the_bundle_and_not_the_copy(models: Path) -> None:
    (models / "2.serving" / "model.onnx").write_bytes(b"x")
    with pytest.raises(DataError, match=str(models / "2.serving" / "model.onnx")):
        load_model(models / "2.serving")


def test_a_source_may_be_refreshed_by_several_threads(models: Path) -> None:
    source = ModelSource(models / "production")
    results: list[bool | None] = []
    threads = [threading.Thread(target=lambda: results.append(source.refresh())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, results)) == ["None", "None", "None", "True"]


def test_the_remedy_for_a_missing_export_names_where_a_link_leads(tmp_path: Path) -> None:
    """A serving bundle beside the link itself would not be found."""
    (tmp_path / "models").mkdir()
    bundle = tmp_path / "models/1f2e3d4c5b6a"
    bundle.mkdir()
    (tmp_path / "production").symlink_to("models/1f2e3d4c5b6a")
    with pytest.raises(DataError, match=rf"--output {bundle}\.serving$"):
        find_serving_bundle(tmp_path / "production")
