"""The examples run; released pipelines are tiny ones of the same classes, see `tests/standins.py`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import imageio.v3 as iio
import pytest
import torch

import fisopt
from fisopt.models import testbed
from tests.standins import stand_in

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def loaded(path: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # the README's own blocks run the same in every `make test`
@pytest.mark.parametrize(
    ("name", "options", "frames"),
    [
        ("wan22_lightning.py", ["--preset", "few-faithful"], 17),
        ("hunyuanvideo15.py", ["--image", "any.png", "--steps", "2"], 5),
    ],
)
def test_released_models(
    name: str, options: list[str], frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    with torch.compiler.set_stance("force_eager"):
        loaded(name).main([*options, "--out", str(tmp_path / "clip.mp4")])
    assert len(iio.imread(tmp_path / "clip.mp4", plugin="pyav")) == frames


def test_a_model_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    loaded("own_model.py").main()
    said = capsys.readouterr().out
    assert "stride 2" in said
    assert "6 of 6" not in said, "the first block is dense"
    assert "5 of 6 blocks sparse" in said


@pytest.mark.xdist_group("wan")
def test_a_pass_of_one_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "own_pass"))
    module = loaded("own_pass/test_mypasses.py")
    module.test_it_does_what_hooks_do()
    module.test_a_model_without_cross_attention_is_refused()


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """What the service logs."""
    text = StringIO()
    handler, log = logging.StreamHandler(text), logging.getLogger("fisopt.service")
    log.addHandler(handler)
    yield text
    log.removeHandler(handler)


@pytest.fixture
def service() -> Any:
    """The service, with an untrained testbed of two layers."""
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    module = loaded("serve/service.py")
    pipe = testbed.build_pipeline(testbed.build_transformer(num_layers=2))
    return module.Service(pipe, ["few-fast"], buckets=(4, 8), steps=1, backend="eager")


@contextmanager
def over_http(load: Callable[[], Any]) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with TestClient(sys.modules["service"].application(load)) as made:
        yield made


def answered(client: Any, path: str, status: int) -> Any:
    """What a probe says once it answers with a status."""
    ends = time.monotonic() + 60
    while (answer := client.get(path)).status_code != status:
        assert time.monotonic() < ends, answer.text
        time.sleep(0.01)
    return answer.json()


@pytest.fixture
def client(service: Any) -> Any:
    with over_http(lambda: service) as made:
        answered(made, "/readyz", 200)
        yield made


CLIP = {"prompt": "red circle moving left fast over waves", "frames": 4}


def test_probes_while_a_service_starts(service: Any) -> None:
    """The process is alive from its start, and ready once it is warm."""
    loading = threading.Event()

    def load() -> Any:
        assert loading.wait(60)
        return service

    with over_http(load) as client:
        for alive in ("/health", "/livez"):
            answer = client.get(alive)
            assert (answer.status_code, answer.json()) == (200, {"ready": False})
        for answer in (client.get("/readyz"), client.post("/clips", json=CLIP)):
            assert answer.status_code == 503
            assert "being loaded" in answer.text
            assert answer.headers["Retry-After"]
        assert client.get("/metrics").text == "fisopt_ready 0\n"
        loading.set()
        assert answered(client, "/readyz", 200) == {"ready": True}
        assert client.get("/health").json() == {"ready": True}
        assert client.get("/metrics").text.endswith("\nfisopt_ready 1\n")


@pytest.mark.parametrize("failing", ["load", "warm_up"])
def test_a_service_that_does_not_start(
    failing: str, service: Any, monkeypatch: pytest.MonkeyPatch, logged: StringIO
) -> None:
    """Waiting does not help: the liveness probe fails, so that the process is started again."""

    def fail() -> Any:
        raise ValueError("no such weights")

    monkeypatch.setattr(service, "warm_up", fail)
    with over_http(fail if failing == "load" else lambda: service) as client:
        assert "did not start" in answered(client, "/livez", 503)["detail"]
        assert client.get("/readyz").status_code == 503
    assert "no such weights" in logged.getvalue()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("sizes differ"), False),
        (fisopt.InputError("sizes differ"), False),
        (torch.OutOfMemoryError("sizes differ"), False),
        (torch.AcceleratorError("sizes differ"), True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_service_s_own_errors(
    error: Exception,
    lost: bool,
    client: Any,
    service: Any,
    monkeypatch: pytest.MonkeyPatch,
    logged: StringIO,
) -> None:
    """They are no 422, whatever their class is, and the log has them."""

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(service, "_run", fail)
    answer = client.post("/clips", json=CLIP)
    assert answer.status_code == 500
    assert "sizes differ" not in answer.text
    assert "sizes differ" in logged.getvalue()
    for probe in ("/livez", "/readyz"):
        assert client.get(probe).status_code == (503 if lost else 200)


def test_a_recipe_that_the_service_cannot_run(
    client: Any, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose mistake it is decides the status; the service goes on under the old recipe."""
    stride = [fisopt.FrameInterleave(stride=4)]
    fisopt.Recipe.of(testbed.build_transformer(num_layers=3), stride).save(tmp_path / "other.yaml")
    answer = client.post("/recipe", params={"path": str(tmp_path / "other.yaml")})
    assert answer.status_code == 422
    fisopt.Recipe.of(testbed.build_transformer(num_layers=2), stride).save(tmp_path / "one.yaml")

    def fail(*_: Any) -> None:
        raise ValueError("sizes differ")

    with monkeypatch.context() as patch:
        patch.setattr(service, "warm_up", fail)
        assert (
            client.post("/recipe", params={"path": str(tmp_path / "one.yaml")}).status_code == 500
        )
    assert client.post("/clips", json=CLIP).status_code == 200


def test_a_service_over_http(client: Any, tmp_path: Path) -> None:
    assert client.get("/health").json() == {"ready": True}
    prompt = "red circle moving left fast over waves"
    for frames in (3, 8):
        answer = client.post("/clips", json={"prompt": prompt, "frames": frames})
        assert answer.status_code == 200
        assert len(iio.imread(answer.content, extension=".mp4", plugin="pyav")) == frames
    refused = (
        ({"frames": 9}, "largest bucket"),
        ({"prompt": "a dog"}, "prompt"),
        ({"seed": 2**64}, "seed"),
    )
    for wrong, message in refused:
        answer = client.post("/clips", json={"prompt": prompt, "frames": 4, **wrong})
        assert answer.status_code == 422
        assert message in answer.text
    said = client.get("/metrics").text
    assert 'fisopt_clips_total{bucket="4"} 1\n' in said
    assert 'fisopt_clips_total{bucket="8"} 1\n' in said
    model = testbed.build_transformer(num_layers=2)
    fisopt.Recipe.of(model, [fisopt.FrameInterleave(stride=4)]).save(tmp_path / "recipe.yaml")
    answer = client.post("/recipe", params={"path": str(tmp_path / "recipe.yaml")})
    assert answer.status_code == 200, answer.text
    assert "fisopt_reloads_total 1\n" in client.get("/metrics").text
    answer = client.post("/recipe", params={"path": str(tmp_path / "nothing.yaml")})
    assert answer.status_code == 422
    answer = client.post("/clips", json={"prompt": prompt, "frames": 4})
    assert answer.status_code == 200


def test_the_newer_of_two_recipes_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    module = loaded("serve/service.py")
    pipe = testbed.build_pipeline(testbed.build_transformer(num_layers=2))
    service = module.Service(pipe, ["few-fast"], buckets=(4,), steps=1, backend="eager")
    newer_is_warm = threading.Event()

    def warm_up(recipe: str) -> None:
        if recipe == "older":
            newer_is_warm.wait(0.5)
        else:
            newer_is_warm.set()

    monkeypatch.setattr(service, "_optimised", lambda recipe: recipe)
    monkeypatch.setattr(service, "warm_up", warm_up)

    async def exchange() -> None:
        await asyncio.gather(service.reload("older"), service.reload("newer"))

    asyncio.run(exchange())
    assert service.module == "newer"


def test_a_group_ends_when_a_rank_fails(monkeypatch: pytest.MonkeyPatch, logged: StringIO) -> None:
    """The other rank may wait in that clip, and would meet the next one there."""
    pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(EXAMPLES / "serve"))
    module = importlib.import_module("serve_ray")
    killed: list[Any] = []
    monkeypatch.setattr(module.ray, "kill", killed.append)
    monkeypatch.setattr(module, "log", logging.getLogger("fisopt.service"))

    async def fail(*_: Any) -> None:
        raise ValueError("sizes differ")

    group = object.__new__(module.Group.func_or_class)
    group.lost, group.buckets = "", (4, 8)
    group.ranks = [SimpleNamespace(make=SimpleNamespace(remote=fail)) for _ in range(2)]

    def ask(path: str, **asked: Any) -> Any:
        async def body() -> bytes:
            return json.dumps(CLIP | asked).encode()

        return asyncio.run(group(SimpleNamespace(body=body, url=SimpleNamespace(path=path))))

    for wrong in ({"frames": 9}, {"frames": 0}, {"prompt": "a dog"}):
        assert ask("/", **wrong).status_code == 422
    assert ask("/readyz").status_code == 200
    group.check_health()
    assert not killed
    answer = ask("/")
    assert answer.status_code == 500
    assert b"sizes differ" not in answer.body
    assert "sizes differ" in logged.getvalue()
    assert killed == group.ranks
    for path in ("/", "/livez", "/readyz"):
        assert ask(path).status_code == 503
    with pytest.raises(RuntimeError, match="sizes differ"):
        group.check_health()


@pytest.mark.slow
def test_a_service_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of two ranks on the CPU, under a recipe of a file."""
    ray, httpx = pytest.importorskip("ray"), pytest.importorskip("httpx")
    serve = pytest.importorskip("ray.serve")
    monkeypatch.syspath_prepend(str(EXAMPLES / "serve"))
    module = importlib.import_module("serve_ray")
    pipe = testbed.build_pipeline(testbed.build_transformer(num_layers=2))
    pipe.save_pretrained(tmp_path / "weights")
    passes = [fisopt.FrameInterleave(), fisopt.SequenceParallel()]
    fisopt.Recipe.of(pipe.transformer, passes).save(tmp_path / "recipe.yaml")
    where = {"recipe": str(tmp_path / "recipe.yaml"), "weights": str(tmp_path / "weights")}
    options = module.Options(2, **where, buckets=(4, 8), steps=1, backend="eager")
    prompt = "red circle moving left fast over waves"
    try:
        module.start(options, num_cpus=2, include_dashboard=False)
        assert httpx.get("http://127.0.0.1:8000/readyz", timeout=60).status_code == 200
        for frames in (3, 8):
            asked = {"prompt": prompt, "frames": frames}
            answer = httpx.post("http://127.0.0.1:8000", json=asked, timeout=300)
            assert answer.status_code == 200, answer.text
            assert len(iio.imread(answer.content, extension=".mp4", plugin="pyav")) == frames
        for wrong, said in (({"frames": 9}, "largest bucket"), ({"prompt": "a dog"}, "prompt")):
            asked = {"prompt": prompt, "frames": 4, **wrong}
            answer = httpx.post("http://127.0.0.1:8000", json=asked, timeout=300)
            assert answer.status_code == 422, answer.text
            assert said in answer.text
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_tuning_and_comparing(tmp_path: Path) -> None:
    given = ["--minutes", "0.2", "--prompts", "2", "--clips", "1", "--steps", "2"]
    loaded("tune_and_compare.py").main([*given, "--out", str(tmp_path)])
    assert (tmp_path / "recipe.yaml").exists()
    assert (tmp_path / "compare.html").exists()


@pytest.mark.slow
def test_the_notebook(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": tmp_path}}
    )
    client.execute()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("g++")), reason="no C++ tools")
def test_loading_from_cpp(tmp_path: Path) -> None:
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    source = str(EXAMPLES / "export_cpp")
    for command in (
        ["cmake", "-S", source, "-B", str(tmp_path), prefix],
        ["cmake", "--build", str(tmp_path)],
        [sys.executable, f"{source}/export.py", "--out", str(tmp_path)],
        [str(tmp_path / "main"), str(tmp_path / "model.pt2"), str(tmp_path / "call.pt")],
    ):
        subprocess.run(command, check=True, cwd=ROOT)
