"""Shadow and canary: they are compared, and their faults never touch an answer."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from serving.batching import score_rows
from serving.metrics import Metrics, observe_all
from serving.options import Canary
from serving.served_model import load_model
from tests.factories.asgi import Client, client_of, serve_options
from tests.factories.support import wait_for
from tests.factories.tiny_serving_bundles import lines, write_serving_bundle

FIRST, SECOND = f"{1:012x}", f"{2:012x}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("challengers")
    for seed in (1, 2):
        write_serving_bundle(folder / f"{seed}.serving", seed)
    return folder


@pytest.fixture
def shadowed(folder: Path) -> Iterator[Client]:
    models, shadows = {"production": folder / "1"}, {"production": folder / "2"}
    with client_of(serve_options(models, shadows=shadows)) as client:
        yield client


@pytest.fixture
def split(folder: Path) -> Iterator[Client]:
    canaries = {"production": Canary(path=folder / "2", fraction=0.25)}
    with client_of(serve_options({"production": folder / "1"}, canaries=canaries)) as client:
        yield client


def shadow_requests(client: Client, outcome: str) -> float:
    name = "clickmill_challenger_requests_total"
    return client.metric(name, role="shadow", outcome=outcome) or 0


def scores_of(folder: Path, seed: int, num_rows: int) -> np.ndarray:
    model = load_model(folder / f"{seed}.serving")
    return score_rows(model, [model.encoder.encode_lines("\n".join(lines(num_rows)).encode())])


def test_a_shadow_scores_the_same_rows_and_the_champion_answers(
    shadowed: Client, folder: Path
) -> None:
    answer = shadowed.post_lines("/score", lines(30)).json
    assert answer["version"] == FIRST
    wait_for(lambda: shadow_requests(shadowed, "scored") == 1, 10)
    ours, theirs = scores_of(folder, 1, 30), scores_of(folder, 2, 30)
    difference = shadowed.metric("clickmill_shadow_difference_sum")
    assert difference == pytest.approx(np.abs(ours - theirs).sum(), rel=1e-5)
    assert shadowed.metric("clickmill_shadow_difference_count") == 30
    mean = shadowed.metric("clickmill_score_sum", role="shadow")
    assert mean == pytest.approx(theirs.sum(), rel=1e-5)


def test_a_shadow_that_fails_changes_no_answer(
    shadowed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = shadowed.app.services["production"].shadow
    assert shadow
    assert shadow.model
    monkeypatch.setattr(shadow.model.encoder, "encode_lines", lambda _: 1 / 0)
    assert shadowed.post_lines("/score", lines(3)).status == 200
    wait_for(lambda: shadow_requests(shadowed, "failed") == 1, 10)


def test_a_slow_shadow_delays_no_answer_and_requests_are_dropped(
    shadowed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = shadowed.app.services["production"].shadow
    assert shadow
    assert shadow.model
    monkeypatch.setattr("serving.service.MAX_SHADOW_REQUESTS", 2)
    is_answered = Event()
    monkeypatch.setattr(shadow.model.encoder, "encode_lines", lambda _: is_answered.wait(30))
    for _ in range(5):
        assert shadowed.post_lines("/score", lines(3)).status == 200
        assert shadow_requests(shadowed, "failed") == 0  # it still waits
    is_answered.set()
    assert shadow_requests(shadowed, "dropped") == 3
    wait_for(lambda: shadow_requests(shadowed, "failed") == 2, 10)  # it got no rows


def test_requests_that_wait_for_a_shadow_have_bounded_bytes(
    shadowed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.service.MAX_SHADOW_BYTES", 1000)
    shadowed.post_lines("/score", lines(50))
    assert shadow_requests(shadowed, "dropped") == 1
    for _ in range(5):  # the bytes of a request that was scored are free again
        before = shadow_requests(shadowed, "scored")
        shadowed.post_lines("/score", lines(2))
        wait_for(lambda before=before: shadow_requests(shadowed, "scored") == before + 1, 10)


def test_a_shadow_that_cannot_be_loaded_is_named_and_the_server_is_ready(folder: Path) -> None:
    options = serve_options({"production": folder / "1"}, shadows={"production": folder / "9"})
    with client_of(options) as client:
        assert client.post_lines("/score", lines(1)).status == 200
        reply = client.get("/ready")
        assert reply.status == 200
        assert "9" in reply.json["models"]["production"]["shadow"]["fault"]


def test_a_canary_answers_its_fraction_and_the_same_id_has_the_same_side(
    split: Client, folder: Path
) -> None:
    sides = {}
    for number in range(400):
        reply = split.post_lines("/score", lines(2), **{"x-request-id": f"user-{number}"})
        sides[number] = reply.json["version"]
        seed = 2 if sides[number] == SECOND else 1
        expected = [float(score) for score in scores_of_cached(folder, seed)]
        assert [float(np.float32(score)) for score in reply.json["scores"]] == expected
    share = list(sides.values()).count(SECOND) / len(sides)
    assert 0.17 < share < 0.33  # four standard deviations of 400 throws
    for number in range(50):
        reply = split.post_lines("/score", lines(2), **{"x-request-id": f"user-{number}"})
        assert reply.json["version"] == sides[number]
    counted = split.metric("clickmill_challenger_requests_total", role="canary", outcome="scored")
    assert counted
    assert counted >= 400 * share


_cache: dict[int, np.ndarray] = {}


def scores_of_cached(folder: Path, seed: int) -> np.ndarray:
    if seed not in _cache:
        _cache[seed] = scores_of(folder, seed, 2)
    return _cache[seed]


def test_without_an_id_the_body_chooses_the_side(split: Client) -> None:
    versions = {}
    for seed in range(2, 42):
        versions[seed] = split.post_lines("/score", lines(1, seed)).json["version"]
        assert split.post_lines("/score", lines(1, seed)).json["version"] == versions[seed]
    assert set(versions.values()) == {FIRST, SECOND}


def test_if_a_canary_fails_the_champion_answers(
    split: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = split.app.services["production"].canary
    assert canary
    assert canary.model
    monkeypatch.setattr(canary.model.encoder, "encode_lines", lambda _: 1 / 0)
    for seed in range(2, 42):
        reply = split.post_lines("/score", lines(1, seed))
        assert (reply.status, reply.json["version"]) == (200, FIRST)
    failed = split.metric("clickmill_challenger_requests_total", role="canary", outcome="failed")
    assert failed
    assert failed > 0


def test_many_values_are_observed_as_one_by_one() -> None:
    values = np.random.default_rng(1).random(500).astype(np.float32)
    values = np.append(values, np.float32([0, 0.05, 0.1, 1, 1]))
    at_once, one_by_one = Metrics(), Metrics()
    observe_all(at_once.scores.labels("m", "r"), values)
    for value in values:
        one_by_one.scores.labels("m", "r").observe(float(value))
    kept = [
        [line for line in metrics.text().decode().splitlines() if "score_bucket" in line]
        for metrics in (at_once, one_by_one)
    ]
    assert kept[0] == kept[1]
    assert len(kept[0]) == 21
