"""The file of the keys: hashes only, closed to others, read again when it changes; and the command that makes it."""

from __future__ import annotations

import json
import logging
import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from hqtl_common.errors import ConfigError
from serving import keys as keys_module
from serving.cli_keys import main
from serving.errors import KeysUnavailableError, UnauthorizedError
from serving.keys import Grants, KeyFile, KeyRing, default_path, edit_keys, new_key, read_keys, revoked, write_keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hqtl" / "keys.json"


@pytest.fixture
def token(path: Path) -> str:
    token, key = new_key("alice", Grants(max_shots=7))
    with edit_keys(path) as keys:
        keys.append(key)
    return token


@pytest.fixture
def ring(path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> KeyRing:
    monkeypatch.setattr(keys_module, "_LOOK_EVERY_S", 0.0)
    return KeyRing(path)


def test_the_file_holds_nothing_that_lets_anybody_in(path: Path, token: str) -> None:
    text = path.read_text()
    assert token not in text
    assert token.rpartition("_")[2] not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")] == ["keys.json"]


def test_keys_are_256_random_bits(token: str) -> None:
    tokens = {new_key("x", Grants())[0] for _ in range(50)}
    assert len(tokens) == 50
    assert {len(one.split("_", 2)[2]) for one in tokens} == {43}  # 32 bytes in base64
    assert token.startswith("hqtl_")


def test_a_key_is_found_and_nothing_like_it(ring: KeyRing, token: str) -> None:
    assert ring.find(token).grants.max_shots == 7
    for wrong in (
        "",
        token[:-1],
        token + "x",
        token.upper(),
        token.replace("hqtl_", ""),
        f"hqtl_{'0' * 8}_{'A' * 43}",
        token[:-1] + "ü",
        "\ud800",
    ):
        with pytest.raises(UnauthorizedError, match="not one of this service"):
            ring.find(wrong)


def test_the_hash_of_a_key_is_no_key(ring: KeyRing, path: Path) -> None:
    (key,) = read_keys(path).keys
    for wrong in (key.sha256, f"hqtl_{key.id}_{key.sha256[:43]}", f"hqtl_{key.id}_"):
        with pytest.raises(UnauthorizedError):
            ring.find(wrong)


def test_comparison_takes_the_same_way_for_known_and_unknown_ids(ring: KeyRing, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or False)
    for wrong in (token, f"hqtl_{'0' * 8}_{'A' * 43}", "nonsense"):
        with pytest.raises(UnauthorizedError):
            ring.find(wrong)
    assert [len(a) == len(b) == 64 for a, b in compared] == [True] * 3


def test_expired_and_revoked_keys_are_refused(ring: KeyRing, path: Path, token: str) -> None:
    late, expired = new_key("bob", Grants(), datetime.now(UTC) - timedelta(seconds=1))
    later, good = new_key("eve", Grants(), datetime.now(UTC) + timedelta(days=1))
    with edit_keys(path) as keys:
        keys[:] = [*revoked(keys, keys[0].id), expired, good]
    with pytest.raises(UnauthorizedError, match="revoked"):
        ring.find(token)
    with pytest.raises(UnauthorizedError, match="expired"):
        ring.find(late)
    assert ring.find(later).name == "eve"


@pytest.mark.parametrize("damage", ["loose", "text", "gone", "field"])
def test_a_file_that_cannot_be_used_lets_nobody_in_until_it_is_mended(
    ring: KeyRing, path: Path, token: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = path.read_bytes()
    if damage == "loose":
        path.chmod(0o640)
    elif damage == "text":
        path.write_text("hello secret")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_text(json.dumps({**json.loads(whole), "admin": True}))
    with caplog.at_level(logging.ERROR, "hqtl.keys"), pytest.raises(KeysUnavailableError):
        ring.find(token)
    assert "nobody is let in" in caplog.text
    assert "secret" not in caplog.text
    path.unlink(missing_ok=True)
    write_keys(path, KeyFile.model_validate_json(whole))
    assert ring.find(token).name == "alice"


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o777])
def test_a_file_that_others_can_read_is_refused(path: Path, token: str, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"open to others \(mode {mode:04o}\)"):
        KeyRing(path)


def test_two_keys_with_one_id_are_refused(path: Path, token: str) -> None:
    (key,) = read_keys(path).keys
    with pytest.raises(ValueError, match="same id"):
        KeyFile(keys=(key, key))


def test_a_repr_shows_no_hash(path: Path, token: str) -> None:
    (key,) = read_keys(path).keys
    assert key.sha256 not in repr(key)


def test_an_edit_that_fails_leaves_the_file_as_it_was(path: Path, token: str) -> None:
    before = path.read_bytes()

    def fail() -> None:
        with edit_keys(path) as keys:
            keys.clear()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_bytes() == before


def test_where_the_file_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/a")
    assert default_path() == Path("/home/a/.config/hqtl/keys.json")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    assert default_path() == Path("/c/hqtl/keys.json")


class TestCommand:
    def run(self, path: Path, *words: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, [words[0], "--file", str(path), *words[1:]])
        assert result.exit_code == code, result.output
        return result.output

    def test_a_key_is_made_shown_and_revoked(self, path: Path) -> None:
        token = self.run(
            path,
            "add",
            "line 3",
            "--backend",
            "stat*",
            "--max-shots",
            "100",
            "--jobs-per-day",
            "2",
            "--requests-per-minute",
            "30",
            "--expires",
            "2999-01-02",
        ).strip()
        key = KeyRing(path).find(token)
        assert key.grants == Grants(backends=("stat*",), max_shots=100, jobs_per_day=2, requests_per_minute=30)
        assert key.expires == datetime(2999, 1, 2, tzinfo=UTC)
        shown = self.run(path, "list", "--json")
        assert [(one["name"], one["state"]) for one in json.loads(shown)] == [("line 3", "good")]
        assert "sha256" not in shown
        table = self.run(path, "list")
        assert key.sha256 not in table
        assert all(word in table for word in (key.id, "stat*", "100", "2999-01-02")), "nothing is cut off"
        self.run(path, "revoke", key.id)
        assert json.loads(self.run(path, "list", "--json"))[0]["state"] == "revoked"

    def test_a_key_without_backends(self, path: Path) -> None:
        token = self.run(path, "add", "figures", "--no-backends").strip()
        assert KeyRing(path).find(token).grants.backends == ()

    def test_wrong_use(self, path: Path) -> None:
        assert "exclude each other" in self.run(path, "add", "x", "--no-backends", "--backend", "a", code=2)
        for words in (("",), ("a" * 101,), ("x", "--backend", ""), ("x", "--qpu-seconds-per-day", "nan")):
            assert "Error: " in self.run(path, "add", *words, code=2)
        assert "there is no file of keys" in self.run(path, "list", code=1)
        self.run(path, "add", "x")
        assert "there is no key 'abc'" in self.run(path, "revoke", "abc", code=1)
        path.chmod(0o644)
        assert "open to others" in self.run(path, "add", "y", code=1)


def test_processes_take_turns(path: Path) -> None:
    children = []
    for number in range(8):
        if (pid := os.fork()) == 0:
            try:
                with edit_keys(path) as keys:
                    keys.append(new_key(f"k{number}", Grants())[1])
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    assert {key.name for key in read_keys(path).keys} == {f"k{number}" for number in range(8)}
