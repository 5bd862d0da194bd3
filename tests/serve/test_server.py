"""The server as a process: the address it announces, how it ends, and what stops it from starting."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from graftwork.errors import BackboneError, UserError
from graftwork.serve.engine import Engine
from graftwork.serve.server import serve
from tests.serve.test_worker import wait_until
from tests.serve.world import World, text
from tests.shared import ROOT

ROW = {"text": text(3), "adapters": "mood"}


def never() -> Engine:
    raise AssertionError("the engine is built although the address cannot be had")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_ends_the_process_after_the_accepted_requests_are_answered(tiny_world: World, number: int) -> None:
    folder = tiny_world.registry.root.parent
    command = [sys.executable, "-m", "tests.serve.server_for_tests", str(folder), "1.5"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        with (
            httpx.Client(base_url=line.split()[-1], timeout=60, trust_env=False) as client,
            ThreadPoolExecutor(1) as one,
        ):
            assert client.get("/healthz").status_code == 200
            wait_until(lambda: client.get("/readyz").status_code == 200)
            asked = one.submit(client.post, "/v1/predict", json={"rows": [ROW]})
            wait_until(lambda: "graftwork_pool_loads_total 1.0" in client.get("/metrics").text)
            process.send_signal(number)
            assert "label" in asked.result(60).json()["answers"][0]
        rest, complaints = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "ended in order\n")
    assert "Traceback" not in complaints


def test_an_engine_that_cannot_be_built_ends_the_server_with_its_error() -> None:
    def fails() -> Engine:
        raise BackboneError("cannot load 'nowhere'")

    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BackboneError, match="cannot load 'nowhere'"):
        serve(fails, port=0, announce=said.append)
    assert len(said) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_that_cannot_be_had(tiny_world: World) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UserError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use; choose another"
        ):
            serve(never, port=port)
    with pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1:70000: .*choose another --port, or 0"):
        serve(never, port=70000)
    with pytest.raises(UserError, match=r"cannot listen on no\.such\.host\.invalid:0: "):
        serve(never, "no.such.host.invalid", 0)


def ran(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_the_server_says_what_to_install(library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        "from graftwork.errors import UserError\n"
        "from graftwork.serve.app import create_app\n"
        "from graftwork.serve.server import serve\n"
        "for ask in (lambda: serve(print, port=0), lambda: create_app(None)):\n"
        "    try:\n        ask()\n"
        "    except UserError as error:\n        print(error)"
    )
    assert ran(code).stdout == f"serving over HTTP needs {library}: pip install 'graftwork[serve]'\n" * 2


def test_the_engine_needs_none_of_them() -> None:
    code = (
        "import sys; import graftwork.serve.engine; print({'fastapi', 'uvicorn', 'prometheus_client'} & {*sys.modules})"
    )
    assert ran(code).stdout == "set()\n"
