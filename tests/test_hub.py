"""Sources: mirror, cache, hub, bundled, in that order; each says which it was, and damage is refused."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from pangu_lab import hub
from pangu_lab.config import DEFAULT_MODEL, load_config


def with_mirror(config, mirror):
    return config.model_copy(update={"paths": config.paths.model_copy(update={"mirror": mirror})})


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The hub's variables as on a machine that has a network and an empty cache."""
    import huggingface_hub.constants as constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "_answered", set())


def serve(handler, monkeypatch):
    import huggingface_hub.constants as constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    return server


def test_the_mirror_comes_first(config, made_up_mirror):
    rows, source = hub.load_dataset("stanfordnlp/imdb", with_mirror(config, made_up_mirror))
    assert source.kind == "mirror" and len(rows["train"]) == 20
    assert "mirror" in str(source)


def test_without_mirror_and_network_the_bundled_sample_stands_in_and_says_so(config):
    rows, source = hub.load_dataset("stanfordnlp/imdb", config)
    assert source.kind == "bundled" and set(rows) == {"train", "validation", "test"}
    assert "bundled sample (in place of stanfordnlp/imdb)" in str(source) and "HF_HUB_OFFLINE" in source.reason


@pytest.mark.parametrize("id", sorted(hub.DATASETS))
def test_every_bundled_sample_has_the_columns_of_its_data_set(config, id):
    rows, _ = hub.load_dataset(id, config, bundled=True)
    assert set(hub.DATASETS[id].columns) <= set(rows["train"].column_names)


@pytest.mark.parametrize("id", sorted(hub.DATASETS))
def test_the_real_mirror_loads(config, real_mirror, id):
    rows, source = hub.load_dataset(id, with_mirror(config, real_mirror))
    assert source.kind == "mirror" and all(len(split) > 1000 for split in rows.values())


def test_a_mirror_that_lacks_a_split_is_told(config, made_up_mirror):
    next(made_up_mirror.rglob("test-*.parquet")).unlink()
    with pytest.raises(hub.SourceError, match=r"the mirror has no test-\*\.parquet"):
        hub.load_dataset("stanfordnlp/imdb", with_mirror(config, made_up_mirror))


def test_a_mirror_that_is_no_folder_is_told(config, tmp_path):
    with pytest.raises(hub.SourceError, match="is not a folder"):
        hub.find_dataset("stanfordnlp/imdb", with_mirror(config, tmp_path / "nowhere"))


def test_a_missing_column_is_told(config, made_up_mirror):
    import datasets

    file = next(made_up_mirror.rglob("train-*.parquet"))
    datasets.Dataset.from_list([{"review": "fine", "label": 1}]).to_parquet(str(file))
    with pytest.raises(hub.SourceError, match="has no column 'text', only review, label"):
        hub.load_dataset("stanfordnlp/imdb", with_mirror(config, made_up_mirror))


def test_an_empty_split_is_told(config, made_up_mirror):
    import datasets

    file = next(made_up_mirror.rglob("train-*.parquet"))
    datasets.Dataset.from_dict({"text": [], "label": []}).to_parquet(str(file))
    with pytest.raises(hub.SourceError, match="holds no rows"):
        hub.load_dataset("stanfordnlp/imdb", with_mirror(config, made_up_mirror))


def test_a_file_that_is_no_table_is_told(config, made_up_mirror):
    next(made_up_mirror.rglob("train-*.parquet")).write_bytes(b"not a table")
    with pytest.raises(hub.SourceError, match="cannot be read as a table"):
        hub.load_dataset("stanfordnlp/imdb", with_mirror(config, made_up_mirror))


def test_an_unknown_data_set_is_told(config):
    with pytest.raises(hub.SourceError, match="is not a data set of this course"):
        hub.find_dataset("somebody/else", config)


def test_the_bundled_weights_are_the_hubs_own_file(config):
    source = hub.find_model(DEFAULT_MODEL, config)
    assert source.kind == "bundled" and (source.folder / "config.json").is_file()


def test_a_damaged_weight_file_is_refused_by_its_hash(config, tmp_path, monkeypatch):
    damaged = tmp_path / "package" / "model"
    damaged.mkdir(parents=True)
    weights = bytearray((hub.bundled_weights() / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)

    class Found:
        submodule_search_locations = (str(damaged.parent),)

    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: Found)
    with pytest.raises(hub.SourceError, match=r"is damaged or is not the file it claims to be \(SHA-256"):
        hub.find_model(DEFAULT_MODEL, config)


def test_a_weight_file_cut_short_is_refused(config, tiny_encoder, tmp_path):
    folder = tmp_path / "mirror" / "some" / "model"
    shutil.copytree(tiny_encoder, folder)
    mirrored = with_mirror(config, tmp_path / "mirror")
    assert hub.find_model("some/model", mirrored).kind == "mirror"
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(hub.SourceError, match="it is cut short"):
        hub.find_model("some/model", mirrored)


def test_another_model_is_stood_in_for_only_where_allowed(config):
    source = hub.find_model("bert-base/none", config)
    assert source.kind == "bundled" and "MiniLM-L6-H384 stands in" in source.reason
    with pytest.raises(hub.SourceError, match="put it into the mirror"):
        hub.find_model("bert-base/none", config, fallback=False)


def test_an_id_that_climbs_out_of_the_mirror_is_refused(config, made_up_mirror):
    with pytest.raises(hub.SourceError, match="is not an id of the hub"):
        hub.find_model("../../etc", with_mirror(config, made_up_mirror))


def test_a_dead_hub_is_found_out_once_and_remembered(config, online, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.find_dataset("stanfordnlp/imdb", config).kind == "bundled"
    memory = json.loads((config.paths.data / "hub_status.json").read_text())
    assert memory["url"] == "http://127.0.0.1:9"
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked again"))
    assert hub.find_dataset("rajpurkar/squad", config).kind == "bundled"


def test_a_hub_that_never_answers_costs_at_most_three_seconds(config, online, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        reachable, reason = hub.hub_reachable(config)
        assert not reachable and reason and time.monotonic() - began < 3.5


def test_a_hub_that_stalls_is_given_up(config, online, monkeypatch):
    class Stalling(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            time.sleep(30)

        def log_message(self, *_):
            pass

    server = serve(Stalling, monkeypatch)
    monkeypatch.setattr(hub, "STALL_SECONDS", 1.0)
    began = time.monotonic()
    source = hub.find_dataset("stanfordnlp/imdb", config)
    server.server_close()
    assert source.kind == "bundled" and "sent nothing" in source.reason and time.monotonic() - began < 8


def test_a_hub_that_refuses_is_passed_over(config, online, monkeypatch):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(503)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    serve(Refusing, monkeypatch)
    source = hub.find_dataset("stanfordnlp/imdb", config)
    assert source.kind == "bundled" and "the hub did not give it" in source.reason


def test_the_cache_is_used_before_the_network(config, online, made_up_mirror, monkeypatch, tmp_path):
    snapshot = tmp_path / "cache" / "datasets--stanfordnlp--imdb" / "snapshots" / ("a" * 40)
    shutil.copytree(made_up_mirror / "stanfordnlp" / "imdb", snapshot)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    rows, source = hub.load_dataset("stanfordnlp/imdb", config)
    assert source.kind == "cache" and len(rows["test"]) == 20


def test_the_hub_is_downloaded_from_and_then_cached(made_up_mirror, monkeypatch, tmp_path):
    """A server that speaks as much of the hub's protocol as a download needs."""
    files = {
        str(path.relative_to(made_up_mirror / "stanfordnlp" / "imdb")): path.read_bytes()
        for path in made_up_mirror.rglob("*.parquet")
    }
    commit = "b" * 40

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, body, kind="application/json", **headers):
            self.send_response(200)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            if self.path.startswith("/api/datasets/stanfordnlp/imdb/tree"):
                tree = [{"type": "file", "path": n, "size": len(b), "oid": "c" * 40} for n, b in files.items()]
                return self.answer(json.dumps(tree).encode())
            if self.path.startswith("/api/"):
                info = {"id": "stanfordnlp/imdb", "sha": commit, "siblings": [{"rfilename": n} for n in files]}
                return self.answer(json.dumps(info).encode())
            name = self.path.split(f"/resolve/{commit}/")[-1]
            if name in files:
                return self.answer(
                    files[name], "application/octet-stream", ETag=f'"{name[-40:]}"', X_Repo_Commit=commit
                )
            return self.answer(b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = serve(Hub, monkeypatch)
    program = (
        "from pangu_lab import hub; from pangu_lab.config import load_config\n"
        "for _ in range(2):\n"
        "    rows, source = hub.load_dataset('stanfordnlp/imdb', load_config(None))\n"
        "    print(source.kind, len(rows['train']))"
    )
    # In a process of its own, because the hub's library reads its address once, when it is imported.
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k} | {"HF_HOME": str(tmp_path / "home")}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    server.shutdown()
    assert told.stdout.split("\n")[:2] == ["hub 20", "cache 20"], told.stderr[-2000:]


def test_a_local_folder_is_a_model(tiny_encoder):
    assert hub.find_model(str(tiny_encoder), load_config(None)).folder == tiny_encoder
