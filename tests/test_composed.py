"""The cache of compositions: it can save time, and can do nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab import composed, config
from optlab.composed import recall, remember
from optlab.config import resolve
from optlab.errors import ConfigError
from optlab.paths import CONF, ROOT

CHOICES = {"model": "mlp", "dataset": "digits"}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like ``conf/`` beside code like ours."""
    code = tmp_path / "optlab"
    code.mkdir()
    for name in ("config.py", "overrides.py", "composed.py"):
        (code / name).write_text("")
    monkeypatch.setattr(composed, "__file__", str(code / "composed.py"))
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mlp.yaml").write_text("width: 1\n")
    return tmp_path / "conf"


def again(groups: tuple[str, ...], conf: Path) -> object:
    """What a new process would be told."""
    composed._files.cache_clear()
    return recall(groups, conf)


def test_what_was_composed_is_recalled_to_the_bit(conf: Path) -> None:
    content = [{"b": 0.1 + 0.2, "a": [None, True, {"x": 1e-300}], "c": "${a.b}"}, {"model": "mlp"}]
    assert again(("model=mlp",), conf) is None
    remember(("model=mlp",), conf, content)

    assert json.dumps(again(("model=mlp",), conf)) == json.dumps(content)
    assert again(("model=gpt",), conf) is None


@pytest.mark.parametrize(
    "name", ["conf/model/mlp.yaml", "conf/new.yaml", "optlab/config.py", "optlab/overrides.py"]
)
def test_any_change_of_the_inputs_is_another_entry(conf: Path, name: str) -> None:
    remember((), conf, [{}, {}])
    path = conf.parent / name
    before = path.stat() if path.exists() else None
    path.write_text("width: 2\n")
    if before:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a careless copy would

    assert again((), conf) is None


@pytest.mark.parametrize("text", ["x: ${oc.env:HOME}", "hydra: {searchpath: [file://x]}"])
def test_what_depends_on_more_than_files_is_not_kept(conf: Path, text: str) -> None:
    (conf / "config.yaml").write_text(text)
    composed._files.cache_clear()
    remember((), conf, [{}, {}])

    assert again((), conf) is None


@pytest.mark.parametrize("damage", ["", "{", "null", '{"sha256": "x", "content": [{}, {}]}'])
def test_a_damaged_entry_is_none(conf: Path, damage: str) -> None:
    remember((), conf, [{}, {}])
    (entry,) = (conf.parent / ".cache").rglob("*.json")
    entry.write_text(damage)
    assert again((), conf) is None

    remember((), conf, [{}, {}])
    assert again((), conf) == [{}, {}]


def test_what_json_would_change_is_not_kept(conf: Path) -> None:
    remember((), conf, [{1: "int key"}, {}])
    remember(("a=b",), conf, [{"x": float("nan")}, {}])

    assert not list((conf.parent / ".cache").rglob("*.json"))


def test_a_folder_that_cannot_be_written_costs_only_time(conf: Path) -> None:
    (conf.parent / ".cache").write_text("a file, not a folder")
    remember((), conf, [{}, {}])

    assert again((), conf) is None


def test_old_entries_are_cleared(conf: Path) -> None:
    remember((), conf, [{}, {}])
    (old,) = (conf.parent / ".cache").rglob("*.json")
    os.utime(old, (1, 1))
    remember(("a=b",), conf, [{}, {}])

    assert not old.exists()
    assert again(("a=b",), conf) == [{}, {}]


METHODS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))


def test_every_method_resolves_as_omegaconf_resolves_it() -> None:
    """The short way through ``resolve`` and the long one give the same, types included."""
    composer = config.Composer()
    for method in METHODS:
        base = composer._base((f"optimizer={method}",))
        tree, choices = base.tree, base.choices

        assert json.dumps(resolve(tree, choices)) == json.dumps(config._resolved(tree, choices))


LEAVES = st.sampled_from(
    [1, 1.0, True, None, "word", "${a}", "${b}", "${b.c}", "x ${a}", "${.c}", "\\${a}", "???",
     "${oc.decode:'1'}", "${nowhere}", "${c.c.c}"]
)  # fmt: skip
TREES = st.dictionaries(
    st.sampled_from("abc"),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("abc"), inner), max_leaves=4)
    | st.lists(LEAVES, max_size=2),
)


@given(TREES)
def test_any_tree_resolves_as_omegaconf_resolves_it(tree: dict[str, object]) -> None:
    def outcome(way: object) -> str:
        try:
            return json.dumps(way(tree, CHOICES))  # type: ignore[operator]
        except (ConfigError, RecursionError) as error:
            return type(error).__name__

    assert outcome(resolve) == outcome(config._resolved)


def test_the_cache_lies_where_git_does_not_look() -> None:
    assert "/.cache/" in (ROOT / ".gitignore").read_text().split()
