"""Snapshots of local directories."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from servd.controller import snapshots
from servd.controller.changed_files import changed_files
from servd.controller.snapshots import prune, snapshot, take_snapshots
from servd.documents.control_plane import ApplicationDocument
from servd.exceptions import ConfigError, GoalNotSavedError


def tree(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


@pytest.fixture
def code(tmp_path: Path) -> Path:
    code = tmp_path / "code"
    (code / "package" / "__pycache__").mkdir(parents=True)
    (code / "main.py").write_text("x = 1")
    (code / "package" / "data.csv").write_text("1,2")
    (code / "package" / "__pycache__" / "main.pyc").write_text("volatile")
    return code


def take(code: Path, *excludes: str) -> Path:
    return Path(snapshot(str(code), excludes, str(code.parent / "store"), "here"))


def test_same_content_is_one_snapshot_other_content_another(code: Path) -> None:
    first = take(code)
    assert tree(first) == {"main.py": "x = 1", "package/data.csv": "1,2"}
    (code / "package" / "__pycache__" / "main.pyc").write_text("changed by running it")
    assert take(code) == first
    (code / "main.py").write_text("x = 2")
    second = take(code)
    assert second != first
    assert tree(first)["main.py"] == "x = 1"
    assert sorted(os.listdir(code.parent / "store")) == sorted([first.name, second.name])


def test_excluded_files_are_neither_copied_nor_hashed(code: Path) -> None:
    first = take(code, "*.csv")
    assert tree(first) == {"main.py": "x = 1"}
    (code / "package" / "data.csv").write_text("3,4")
    assert take(code, "*.csv") == first
    assert tree(take(code, "package/")) == {"main.py": "x = 1"}


@pytest.mark.parametrize("place", ["serve.yaml", "package/serve.yaml"])
def test_the_config_file_is_no_code(code: Path, place: str) -> None:
    config = code / place
    other = code / "package" / "other" / "serve.yaml"
    other.parent.mkdir()
    other.write_text("of a user")
    found = []
    for count in (1, 2):
        config.write_text(f"num_replicas: {count}")
        env = {"working_dir": str(code)}
        taken = take_snapshots([ApplicationDocument("a", runtime_env=env)], str(code.parent / "store"), str(config))
        found.append(taken["a"][str(code)])
    assert found[0] == found[1]
    assert sorted(tree(Path(found[0]))) == ["main.py", "package/data.csv", "package/other/serve.yaml"]
    # one that is known by a link, and one that is on another host
    (code.parent / "link.yaml").symlink_to(config)
    store = str(code.parent / "store")
    assert snapshot(str(code), (), store, "here", str(code.parent / "link.yaml")) == found[0]
    assert place in tree(Path(snapshot(str(code), (), store, "here", "/nowhere/serve.yaml")))


def test_what_differs_between_two_snapshots(code: Path) -> None:
    (code / "run.sh").write_text("true")
    (code / "link").symlink_to("main.py")
    (code / "folder").symlink_to("package")
    (code / "gone.py").write_text("")
    first = take(code)
    assert changed_files(str(first), str(first)) == {}
    (code / "main.py").write_text("x = 2")
    (code / "run.sh").chmod(0o755)
    (code / "link").unlink()
    (code / "link").symlink_to("run.sh")
    (code / "gone.py").unlink()
    (code / "package" / "new.py").write_text("")
    assert changed_files(str(first), str(take(code))) == {
        "gone.py": "removed",
        "link": "changed",
        "main.py": "changed",
        "package/new.py": "added",
        "run.sh": "changed",
    }
    assert changed_files(str(code.parent / "pruned"), str(first)) == {}


def test_links_inside_stay_links_links_out_become_files_and_circles_end(code: Path) -> None:
    (code.parent / "outside.txt").write_text("out")
    (code / "alias.py").symlink_to("main.py")
    (code / "far.txt").symlink_to(code.parent / "outside.txt")
    (code / "broken").symlink_to("/nowhere/at/all")
    (code / "package" / "up").symlink_to(code)
    taken = take(code)
    assert (taken / "alias.py").is_symlink()
    assert not (taken / "far.txt").is_symlink()
    assert (taken / "far.txt").read_text() == "out"
    assert not (taken / "broken").exists()


def test_executables_stay_executable(code: Path) -> None:
    before = take(code)
    (code / "main.py").chmod(0o755)
    after = take(code)
    assert after != before
    assert os.access(after / "main.py", os.X_OK)


def test_missing_and_too_large_directories_are_refused(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="here: there is no directory"):
        take(code / "absent")
    monkeypatch.setattr(snapshots, "MAX_SNAPSHOT_BYTES", 7)
    with pytest.raises(ConfigError, match="leave data out with runtime_env excludes"):
        take(code)
    assert os.listdir(code.parent / "store") == []
    assert os.listdir(code.parent / "files") == []


def test_every_local_directory_of_a_document_is_taken_as_it_is_written(code: Path) -> None:
    uri = f"file://{code}"
    override = {"name": "D", "ray_actor_options": {"runtime_env": {"py_modules": [f"{uri}/package"]}}}
    remote = "https://example.com/a.zip"
    document = ApplicationDocument(
        "app", "main:x", runtime_env={"working_dir": uri, "py_modules": [remote]}, deployments=(override,)
    )
    taken = take_snapshots([document, ApplicationDocument("other")], str(code.parent / "store"))
    assert set(taken) == {"app"}
    assert set(taken["app"]) == {uri, f"{uri}/package"}
    assert tree(Path(taken["app"][f"{uri}/package"])) == {"data.csv": "1,2"}


def test_a_state_directory_inside_is_left_out(code: Path) -> None:
    store = code / "state" / "code"
    store.parent.mkdir()
    first = snapshot(str(code), (), str(store), "here")
    (code / "state" / "goals.sqlite3").write_text("changes all the time")
    assert snapshot(str(code), (), str(store), "here") == first
    assert tree(Path(first)) == {"main.py": "x = 1", "package/data.csv": "1,2"}


def test_virtual_environments_are_left_out(code: Path) -> None:
    first = take(code)
    (code / ".venv" / "lib").mkdir(parents=True)
    (code / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin")
    (code / ".venv" / "lib" / "large.py").write_text("x" * 1000)
    assert take(code) == first


def test_a_new_snapshot_is_on_disk_before_it_has_its_name(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = code.parent / "store"
    synced: list[tuple[Path, bool]] = []

    def noting(sync: Callable[[str], None]) -> Callable[[str], None]:
        def note(path: str) -> None:
            synced.append((Path(path), any(not name.startswith(".") for name in os.listdir(store))))
            sync(path)

        return note

    for name in ("sync_tree", "sync_directory"):
        monkeypatch.setattr(snapshots, name, noting(getattr(snapshots, name)))
    taken = take(code)
    (draft, had_name), *after = synced
    assert (draft.parent, draft.name.startswith(".draft-"), had_name) == (store, True, False)
    assert after == [(store, True), (store.parent, True)]
    synced.clear()
    assert take(code) == taken
    assert synced == [], "what is there already is on disk"


def test_unchanged_files_of_snapshots_are_on_disk_once(code: Path) -> None:
    first = take(code)
    (code / "main.py").write_text("x = 2")
    second = take(code)
    assert (first / "package" / "data.csv").samefile(second / "package" / "data.csv")
    assert not (first / "main.py").samefile(second / "main.py")
    (code / "same.csv").write_text("1,2")
    third = take(code)
    assert (third / "same.csv").samefile(first / "package" / "data.csv")
    (code / "run.sh").write_text("x = 2")
    (code / "run.sh").chmod(0o755)
    fourth = take(code)
    assert os.access(fourth / "run.sh", os.X_OK)
    assert (fourth / "main.py").stat().st_mode & 0o111 == 0, "the bit is the file's, not the content's"


def test_a_stored_file_that_somebody_wrote_to_is_not_used_again(code: Path) -> None:
    first = take(code)
    stored = first / "package" / "data.csv"
    stored.chmod(0o600)
    stored.write_text("9,9")
    (code / "main.py").write_text("x = 2")
    assert tree(take(code)) == {"main.py": "x = 2", "package/data.csv": "1,2"}


def test_what_nobody_needs_is_pruned_with_the_files_that_only_it_had(code: Path) -> None:
    store = code.parent / "store"
    first = take(code)
    (code / "main.py").write_text("x = 2" * 100)
    second = take(code)
    shipped = store / f"{'a' * 64}.pkl"
    shipped.write_bytes(b"12345")
    (store / "v-environment").mkdir()
    names, freed = prune(str(store), {second.name}, dry_run=True)
    assert (sorted(names), freed) == (sorted([first.name, shipped.name]), 5 + len("x = 1"))
    assert first.is_dir()
    assert shipped.is_file()
    assert prune(str(store), {second.name}, dry_run=False) == (names, freed)
    assert sorted(os.listdir(store)) == sorted([second.name, "v-environment"])
    assert len(os.listdir(store.parent / "files")) == 2
    assert tree(second)["package/data.csv"] == "1,2"
    assert prune(str(store), {second.name}, dry_run=False) == ([], 0)
    assert prune(str(code.parent / "none"), set(), dry_run=False) == ([], 0)


@pytest.mark.parametrize("name", ["code", "files"])
def test_a_state_directory_that_takes_no_file_refuses_the_document(code: Path, name: str) -> None:
    state = code.parent / "state"
    state.mkdir(mode=0o700)
    # root may write anywhere, but not below a file
    (state / name).write_text("")
    with pytest.raises(GoalNotSavedError, match="cannot write a snapshot") as refused:
        snapshot(str(code), (), str(state / "code"), "here")
    assert refused.value.status_code == 507
