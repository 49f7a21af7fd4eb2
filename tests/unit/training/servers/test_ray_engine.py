"""The engine on Ray, where Ray is not installed; other tests are in tests/servers."""

import importlib
import sys

import pytest

from common.config.loading import ConfigError


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "training.servers.ray_engine", raising=False)
    with pytest.raises(ConfigError) as caught:
        importlib.import_module("training.servers.ray_engine")
    assert str(caught.value) == (
        "train.parallel is servers, but ray is not installed: pip install 'clickmill[servers]', "
        "or set train.parallel to data, model or hybrid, which do without"
    )
