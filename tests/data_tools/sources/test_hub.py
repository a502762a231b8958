"""Datasets of the hub: from the library's cache without a network, and one clear line where there is neither."""

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest

from data_tools.errors import SourceError
from data_tools.sources.hub import hub_files
from tests.conftest import ROOT

# An address of this machine where nothing listens: no network, whatever the machine has.
NOWHERE = "http://127.0.0.1:9"

SCRIPT = """
import sys
from data_tools.errors import SourceError
from data_tools.settings import SourceSettings
from data_tools.sources import read_part, source_parts
name, subset, split = (word or None for word in sys.argv[1:4])
source = SourceSettings(hub=name, subset=subset, split=split, format="alpaca")
try:
    for part in source_parts(source, "rows"):
        print(*[(row.origin, row.value["text"]) for row in read_part(part)])
except SourceError as error:
    print(f"SourceError: {error}")
"""


def run(home: Path, name: str, subset: str = "", split: str = "", **more: str) -> str:
    # Other tests of this process may have called what sets HF_HUB_OFFLINE.
    environment = {
        k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("HF_")
    }
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": NOWHERE, "PYTHONPATH": str(ROOT), **more}
    command = [sys.executable, "-c", SCRIPT, name, subset, split]
    done = subprocess.run(
        command, env=environment, cwd=home, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache as the library leaves it behind: one dataset of two splits."""
    home = tmp_path_factory.mktemp("hub")
    folder = home / "datasets" / "someone___small_set" / "default" / "0.0.0" / "abc123"
    folder.mkdir(parents=True)
    splits = {}
    for split, rows in (("train", 3), ("test", 1)):
        table = pa.table({"text": [f"{split} {number}" for number in range(rows)]})
        with pa.ipc.new_stream(folder / f"small_set-{split}.arrow", table.schema) as writer:
            writer.write_table(table)
        splits[split] = {"name": split, "num_bytes": 9, "num_examples": rows, "dataset_name": "small_set"}
    info = {
        "builder_name": "json",
        "config_name": "default",
        "dataset_name": "small_set",
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": splits,
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return home


def test_a_cached_dataset_is_read_without_a_network(home: Path) -> None:
    rows = [("someone/small_set/train-00000#0", "train 0"), ("someone/small_set/train-00000#1", "train 1")]
    printed = run(home, "someone/small_set")
    assert printed.startswith(" ".join(map(str, rows)))
    assert "test 0" in run(home, "someone/small_set", split="test", HF_HUB_OFFLINE="1")


def test_without_network_and_cache_one_line_says_so_at_once(home: Path) -> None:
    start = time.monotonic()
    printed = run(home, "someone/other-set")
    assert time.monotonic() - start < 30
    assert printed.startswith(
        "SourceError: hub: someone/other-set: no network here, and the dataset is not in the"
    )
    assert "save_to_disk" in printed
    assert len(printed.splitlines()) == 1


def test_a_split_or_subset_that_is_not_there_is_explained(home: Path) -> None:
    printed = run(home, "someone/small_set", split="dev")
    assert printed == (
        "SourceError: hub: someone/small_set: split: got 'dev'; expected one of test, train; do: name it in `split`"
    )
    assert "['default']" in run(home, "someone/small_set", subset="xx")


def test_paths_are_no_names_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError, match="some/folder: a path on this machine; expected OWNER/NAME; do: write `path`"
    ):
        hub_files("some/folder", None, None)
    with pytest.raises(SourceError, match="no name of a dataset"):
        hub_files("../x", None, None)


def test_what_the_hub_answers_is_told_in_one_line(tmp_path: Path) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        printed = run(tmp_path, "someone/other", HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert printed.startswith(
        "SourceError: hub: someone/other: cannot be loaded: Dataset 'someone/other' doesn't exist"
    )
    assert printed.endswith("do: check the name, `subset` and access")
    assert len(printed.splitlines()) == 1


def test_a_proxy_that_does_not_answer_is_no_network(tmp_path: Path) -> None:
    printed = run(tmp_path, "someone/other", HF_ENDPOINT="http://hub.invalid", http_proxy=NOWHERE)
    assert "no network here" in printed
